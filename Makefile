# setup · up · test · check · drill · bench · images-test; needs python3 (3.11 or newer), git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-

# uv finds the wheels that pip was told of.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# One thread a process: the product's own setting, and what keeps two cores from fighting.
export OMP_NUM_THREADS ?= 1

.PHONY: setup up test check format bench drill images-test clean

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "fourfold: $(PYTHON) is older than 3.11; set PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip, sqlite3, ssl' \
	  || { echo "fourfold: this Python lacks a standard module (named above); install it, e.g. python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check uv -c constraints.txt

$(STAMP)serve: $(BIN)/uv pyproject.toml constraints.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[gateway,service,worker]'
	@touch $@

$(STAMP)dev: $(BIN)/uv pyproject.toml constraints.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'
	@touch $@ $(STAMP)serve

# The scanner of the manifests pins what it needs, against what we do.
$(STAMP)policy: $(BIN)/uv tests/deployment/policy.txt
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)/policy
	$(BIN)/uv pip install --quiet --python $(VENV)/policy/bin/python -r tests/deployment/policy.txt
	@touch $@

setup: $(STAMP)dev $(STAMP)policy

up: $(STAMP)serve
	@$(BIN)/fourfold up

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright

# Two files of tests at a time: most of the long ones wait for the processes that they started.
test: setup check
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

drill: setup
	$(BIN)/python -m tests.drill

images-test: setup
	$(BIN)/python -m tests.images

bench: setup
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build *.egg-info
