# make demo    a small model hears, sees and speaks; .demo/demo.html shows it (the first time it installs everything)
# make tiny    make the checkpoint of the demo anew: data and all stages of training, some hours
# make test    all tests but the slow ones
# make lint    style
# make setup   only install, into .venv
# make compilers   what `omni-jax compile` needs: the TPU and GPU compilers (1.4 GB)
# make clean   remove what these made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
COMPILERS := $(VENV)/compilers
# As many test processes as the machine has processors.
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: setup compilers demo tiny test lint clean

setup: $(READY)

$(READY): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[parity,test,train,evaluation]'
	touch $@

# Compilers of chips that are not here, for `omni-jax compile` and its tests. In a folder of their own, which only the
# compiling processes look into: beside JAX every command would load them, and complain that there is no chip.
$(COMPILERS)/.ready: setup.cfg | $(READY)
	jax=$$($(BIN)/python -c 'import jax; print(jax.__version__)') && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(COMPILERS) \
		'libtpu==0.0.42.*' jax-cuda13-plugin==$$jax jax-cuda13-pjrt==$$jax 'nvidia-cuda-nvcc==13.*' 'nvidia-nvvm==13.*'
	touch $@

compilers: $(COMPILERS)/.ready

demo: $(READY)
	$(BIN)/omni-jax demo

# Stopped at any time, it goes on where it was. FSDD is the folder of the human digits, see examples/omni_tiny/README.md.
FSDD ?= $(TINY)/packages/fsdd
TINY ?= .omni_tiny

tiny: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,omni-tiny]'
	$(BIN)/python -m examples.omni_tiny.train_all --to $(TINY) --fsdd $(FSDD) --jobs 2

# Compiled programs are kept in .cache/xla, for all test processes and for the next run.
# Each process computes with one thread, or they would fight for the processors; a file's tests share a process, and so
# what it has compiled. Files go in the order of tests/conftest.py, the longest first.
test: $(READY) $(COMPILERS)/.ready
	JAX_PLATFORMS=cpu OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 15 -m 'not slow'

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) .demo .cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
