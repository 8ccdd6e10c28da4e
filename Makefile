# make demo    a picture, a recording and a film through the model (the first time it installs everything)
# make test    all tests but the slow ones
# make lint    style
# make setup   only install, into .venv
# make clean   remove what these made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# As many test processes as the machine has processors.
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: setup demo test lint clean

setup: $(READY)

$(READY): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[parity,test]'
	touch $@

demo: $(READY)
	$(BIN)/omni-jax demo

# Compiled programs are kept in .cache/xla, for all test processes and for the next run.
# Each process computes with one thread, or they would fight for the processors; a file's tests share a process, and so
# what it has compiled.
test: $(READY)
	JAX_PLATFORMS=cpu OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m 'not slow'

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) .demo .cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
