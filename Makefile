# make train: from a fresh clone to a trained LoopMoE and its report. make test: the whole suite.
PYTHON ?= python3
VENV ?= .venv
MODEL ?= loopmoe_tiny
BIN := $(VENV)/bin
TORCH_NPU := .torch-npu

.PHONY: setup train test parity chaos deepspeed docker kernels-ascend bench clean

setup: $(VENV)/.installed

# A torch that this Python already has (a cluster image's, say) is used, never replaced.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $$($(PYTHON) -c 'import torch' 2>/dev/null && echo --system-site-packages) $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed $(TORCH_NPU)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# torch_npu's wheel beside the environment, not in it: tests compare what the trainer tells an NPU
# with the sources, schemas and names that it holds. It cannot be imported without CANN. There are
# wheels for Linux alone; elsewhere those tests are skipped.
$(TORCH_NPU)/.installed: | $(VENV)/.installed
	mkdir -p $(TORCH_NPU)
	test $$(uname) != Linux || $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    --no-deps --upgrade --target $(TORCH_NPU) torch_npu==2.13.0
	touch $@

train: setup
	$(BIN)/loopmoe train model=$(MODEL) name=$(MODEL)

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -m "not parity and not chaos and not docker"

# The grid of layouts three times with a table of errors, then the other long tests: most of an hour.
parity: $(VENV)/.installed-dev
	$(BIN)/python -m tests.parity.grid --repeat 3
	$(BIN)/python -m pytest -m parity

# Five seeds of every fault, about a quarter of an hour on two cores; CHAOS_SEEDS=1 for a look.
chaos: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m chaos

# What needs DeepSpeed, an extra: installs it, compiles its Adam once (a minute or two) and tests.
deepspeed: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[deepspeed]'
	$(BIN)/python -m pytest tests/optim/test_host.py tests/optim/test_zero.py tests/bench/test_optimizer.py

# Executes the steps of docker/cpu/Dockerfile in an overlay over this machine's root and trains in it.
docker: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m docker

# Lowers every Triton kernel for an NPU, without one, and checks what the lowering lets pass. Its
# triton cannot live beside the other, so it has an environment of its own (1.2 GB).
ASCEND_VENV ?= .venv-ascend
ASCEND_PYTHON ?= python3.11

kernels-ascend: $(ASCEND_VENV)/.installed
	$(ASCEND_VENV)/bin/python -m tests.kernels.ascend

$(ASCEND_VENV)/.installed: pyproject.toml
	test -x $(ASCEND_VENV)/bin/python || $(ASCEND_PYTHON) -m venv $(ASCEND_VENV)
	$(ASCEND_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
	    triton-ascend==3.2.0 pybind11 'numpy<2.4' torch==2.13.0 'setuptools>=77'
	$(ASCEND_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
	    --no-deps --no-build-isolation -e .
	touch $@

bench: setup
	$(BIN)/loopmoe bench train --against megatron

clean:
	rm -rf $(VENV) $(ASCEND_VENV) $(TORCH_NPU) build dist *.egg-info
