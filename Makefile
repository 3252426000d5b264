# make demo | make test | make lint: each sets up everything it needs, from nothing, and is quick the second time.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SYSTEM_READY := .setup/system-packages
# mujoco renders without a screen: `egl` (GPU or Mesa) or `osmesa`.
export MUJOCO_GL ?= egl
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test lint format setup clean-demo

demo: setup
	$(BIN)/python evaluation/demo.py --output_dir outputs/demo

test: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(INSTALLED) $(SYSTEM_READY)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "worldvla needs Python 3.10 or newer; found $$($(PYTHON) --version). Set PYTHON=/path/to/python3."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "Could not make a virtual environment. On Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[libero,train,eval,regions,dev]'
	@touch $@

$(SYSTEM_READY): .ci/system-packages
	@mkdir -p $(@D)
	bash .ci/system-packages
	@touch $@

clean-demo:
	rm -rf outputs/demo
