# The product's images. Targets: gateway, service, worker (CPU), worker-gpu.
#
#     docker build --target gateway -t fourfold-gateway:dev .
#
# BASE is any slim image of Debian with Python 3.11 or newer; BUILD_BASE the same with what it takes to reach packages.
ARG BASE=python:3.11-slim-bookworm
ARG BUILD_BASE=${BASE}

FROM ${BUILD_BASE} AS build
ENV UV_LINK_MODE=copy UV_NO_CACHE=1 PIP_NO_CACHE_DIR=1 VIRTUAL_ENV=/opt/fourfold
WORKDIR /app
# Of the product itself only what names its packages: these layers change with them, not with the code.
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY shared/about.py shared/about.py
RUN python3 -m venv /opt/uv && /opt/uv/bin/pip install --quiet --disable-pip-version-check uv -c constraints.txt \
    && /opt/uv/bin/uv venv --quiet /opt/fourfold

FROM build AS build-gateway
RUN /opt/uv/bin/uv pip install --quiet -c constraints.txt '.[gateway,postgres,s3,tracing]' \
    && /opt/uv/bin/uv pip uninstall --quiet fourfold

FROM build AS build-service
RUN /opt/uv/bin/uv pip install --quiet -c constraints.txt '.[service,postgres,s3,tracing]' \
    && /opt/uv/bin/uv pip uninstall --quiet fourfold

FROM build AS build-worker
# Which torch: cpu, unless the package settings of the build (then: empty) offer one.
ARG TORCH_BACKEND=cpu
RUN /opt/uv/bin/uv pip install --quiet ${TORCH_BACKEND:+--torch-backend ${TORCH_BACKEND}} -c constraints.txt \
      '.[worker,postgres,s3,mlflow]' \
    && /opt/uv/bin/uv pip uninstall --quiet fourfold

FROM build AS build-worker-gpu
RUN /opt/uv/bin/uv pip install --quiet -c constraints.txt '.[gpu,postgres,s3,mlflow]' \
    && /opt/uv/bin/uv pip uninstall --quiet fourfold

FROM ${BASE} AS runtime
LABEL org.opencontainers.image.title="Fourfold" org.opencontainers.image.licenses="Apache-2.0"
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
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
CMD ["python", "-m", "fourfold", "serve", "gateway"]

FROM runtime AS service
COPY --from=build-service /opt/fourfold /opt/fourfold
COPY services services
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
# Which domain: FOURFOLD_DOMAIN.
CMD ["python", "-m", "fourfold", "serve"]

FROM runtime AS worker-base
COPY services services
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
  CMD ["test", "-f", "/home/fourfold/run/worker.ready"]
CMD ["python", "-m", "shared.jobs.worker"]

FROM worker-base AS worker
COPY --from=build-worker /opt/fourfold /opt/fourfold

FROM worker-base AS worker-gpu
COPY --from=build-worker-gpu /opt/fourfold /opt/fourfold
