# Each target sets up everything it needs, from nothing, and is quick the second time.
#   make demo          the checkpoint that comes along acts in LIBERO and imagines the same episode (minutes)
#   make demo-train    the whole road: demonstrations, tokens, training, a rollout (a quarter of an hour and more)
#   make clean-demo    delete what the two have left in outputs/
#   make test          the tests; PYTEST_ARGS="..." chooses among them
#   make lint          what every change must pass beside the tests; `make format` repairs what it can
# DEMO_ARGS="..." gives either demo further options, such as DEMO_ARGS="--task_id 3".
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SYSTEM_READY := .setup/system-packages
# mujoco renders without a screen: `egl` (GPU or Mesa) or `osmesa`.
export MUJOCO_GL ?= egl
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo demo-train clean-demo test lint format setup

demo: setup
	$(BIN)/python evaluation/demo.py --output_dir outputs/demo $(DEMO_ARGS)

demo-train: setup
	$(BIN)/python evaluation/demo_train.py --output_dir outputs/demo-train $(DEMO_ARGS)

clean-demo:
	rm -rf outputs/demo outputs/demo-train

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
