# Everything from nothing: only python3 (3.11 or newer) and make are needed.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    ?= runs/demo-$(shell date +%Y-%m-%d_%H-%M-%S)
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: help demo test lint types install install-dev fetch benchmark pictures clean
help:            ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedpeft needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

$(VENV)/.installed: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

install: $(VENV)/.installed          ## virtual environment with pinned dependencies
install-dev: $(VENV)/.installed-dev  ## the same with tools and every extra that tests use

fetch: install   ## model and data of the demo
	$(BIN)/fedpeft data fetch minilm sentiment

demo: fetch      ## federate LoRA over 20 simulated devices and write the report
	$(BIN)/fedpeft simulate +experiment=demo run_dir=$(RUN)

test: install-dev fetch lint   ## the whole suite; COVERAGE=1 measures coverage too, which takes twice as long
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(if $(COVERAGE),--cov --cov-report=term:skip-covered --cov-fail-under=90)

lint: install-dev   ## style, floors, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

benchmark: install-dev fetch   ## the README's figures
	$(BIN)/python benchmarks/engines.py

pictures: install-dev   ## the README's pictures, from the newest demo run (needs chromium)
	$(BIN)/python benchmarks/pictures.py $(shell ls -dt runs/demo-* | head -1)

clean:           ## remove what make made
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .import_linter_cache dist
