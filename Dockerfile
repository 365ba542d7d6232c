# The product's images. Targets: gateway, service (one for each domain), worker (CPU), worker-gpu.
#
#     docker build --target gateway -t fourfold-gateway:dev .
#     docker build --target service --build-arg SERVICE=iqa -t fourfold-service-iqa:dev .
#
# BASE is any slim image of Debian with Python 3.11 or newer; BUILD_BASE the same with what it takes to reach packages.
ARG BASE=python:3.11-slim-bookworm
ARG BUILD_BASE=${BASE}

FROM ${BUILD_BASE} AS build
ENV UV_LINK_MODE=copy UV_NO_CACHE=1 PIP_NO_CACHE_DIR=1 VIRTUAL_ENV=/opt/fourfold
WORKDIR /app
# Of the product itself only what names its packages: these layers change with them, not with the code.
COPY constraints.txt pyproject.toml README.md LICENSE image-trim.sh ./
COPY shared/about.py shared/about.py
RUN python3 -m venv /opt/uv \
    && /opt/uv/bin/pip install --quiet --disable-pip-version-check uv cyclonedx-bom -c constraints.txt \
    && /opt/uv/bin/uv venv --quiet /opt/fourfold
# What every environment ends with: the product itself comes as source, and the packages are listed (CycloneDX).
ENV FINISH="/opt/uv/bin/uv pip uninstall --quiet fourfold && /opt/uv/bin/cyclonedx-py environment \
    --pyproject pyproject.toml --output-reproducible -o /opt/fourfold/sbom.cdx.json /opt/fourfold/bin/python"

FROM build AS build-gateway
RUN /opt/uv/bin/uv pip install --quiet -c constraints.txt '.[gateway,postgres,s3,tracing]' \
    && eval "$FINISH" && ./image-trim.sh /opt/fourfold

# What all services share is one layer of all their images.
FROM build AS build-serving
RUN /opt/uv/bin/uv pip install --quiet -c constraints.txt '.[serving,postgres,s3,tracing]' \
    && /opt/uv/bin/uv pip uninstall --quiet fourfold && ./image-trim.sh /opt/fourfold

FROM build-serving AS build-service
# Which domain; all of them if empty.
ARG SERVICE=
RUN touch /opt/begun \
    && /opt/uv/bin/uv pip install --quiet -c constraints.txt ".[service${SERVICE:+-${SERVICE}}]" \
    && eval "$FINISH" && ./image-trim.sh /opt/fourfold serving \
    && find /opt/fourfold ! -type d ! -newercm /opt/begun -delete

FROM build AS build-worker
# Which torch: cpu, unless the package settings of the build (then: empty) offer one.
ARG TORCH_BACKEND=cpu
RUN /opt/uv/bin/uv pip install --quiet ${TORCH_BACKEND:+--torch-backend ${TORCH_BACKEND}} -c constraints.txt \
      '.[worker,postgres,s3,mlflow]' \
    && eval "$FINISH" && ./image-trim.sh /opt/fourfold

FROM build AS build-worker-gpu
# CUDA's libraries are packages. onnxruntime-gpu is in the place of onnxruntime: both have the same folder.
COPY constraints-gpu.txt ./
RUN echo 'onnxruntime; python_version < "3"' > overrides.txt \
    && /opt/uv/bin/uv pip install --quiet -c constraints.txt -c constraints-gpu.txt --overrides overrides.txt \
      '.[gpu,postgres,s3,mlflow]' \
    && eval "$FINISH" && ./image-trim.sh /opt/fourfold

FROM ${BASE} AS runtime
LABEL org.opencontainers.image.title="Fourfold" org.opencontainers.image.licenses="Apache-2.0" \
    fourfold.sbom="/opt/fourfold/sbom.cdx.json"
# The home belongs to the product's user, so that a volume that is mounted there does too.
RUN useradd --uid 10001 --user-group --create-home --home-dir /home/fourfold --shell /usr/sbin/nologin fourfold \
    && install -d -o 10001 -g 10001 /state
ENV PATH=/opt/fourfold/bin:$PATH PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HOME=/home/fourfold FOURFOLD_HOME=/home/fourfold OMP_NUM_THREADS=1
WORKDIR /app
COPY LICENSE constraints.txt ./
COPY fourfold fourfold
COPY shared shared
USER 10001:10001

FROM runtime AS gateway
COPY --from=build-gateway /opt/fourfold /opt/fourfold
COPY gateway gateway
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=5s --start-period=120s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
CMD ["python", "-m", "fourfold", "serve", "gateway"]

FROM runtime AS service
COPY --from=build-serving /opt/fourfold /opt/fourfold
COPY --from=build-service /opt/fourfold /opt/fourfold
ARG SERVICE=
COPY services/__init__.py services/
COPY services/${SERVICE} services/${SERVICE}
# In an image of all domains: to be set where it is started.
ENV FOURFOLD_DOMAIN=${SERVICE}
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=5s --start-period=120s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
CMD ["python", "-m", "fourfold", "serve"]

FROM runtime AS worker-base
COPY services services
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
  CMD ["test", "-f", "/home/fourfold/run/worker.ready"]
CMD ["python", "-m", "shared.jobs.worker"]

FROM worker-base AS worker
COPY --from=build-worker /opt/fourfold /opt/fourfold

FROM worker-base AS worker-gpu
COPY --from=build-worker-gpu /opt/fourfold /opt/fourfold
