# Everything runs in .venv, which is made once; see README.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# index to take torch from, for example that of its CPU builds; empty: pip's own
TORCH_INDEX ?=
# a folder of its own for every run, so that no earlier result is lost
OUT ?= runs/quickstart-$(shell date +%Y%m%d-%H%M%S)

# other environments: the newest of all that the ranges of pyproject.toml allow, and their lower bounds
NEWEST := .venv-newest
OLDEST := .venv-oldest
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

.PHONY: quickstart test test-slow test-newest test-oldest contract lint venv clean

venv: $(STAMP)

# torch first, alone and pinned, so that nothing installed after it chooses another build
$(STAMP): pyproject.toml setup.py constraints.txt $(wildcard src/tptt/ops/native/kernels/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "tptt needs Python 3.11 or newer (transformers 5.23 does); try: make PYTHON=python3.12 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

# torch before all else here too, for the same reason; pip keeps it, because its range allows no other
$(NEWEST)/.installed: pyproject.toml setup.py $(wildcard src/tptt/ops/native/kernels/*)
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(NEWEST)/bin/pip install --quiet --upgrade --upgrade-strategy eager -e ".[dev]"
	touch $@

$(OLDEST)/.installed: pyproject.toml setup.py tools/lower_bounds.py $(wildcard src/tptt/ops/native/kernels/*)
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(PYTHON) -m tools.lower_bounds dev plot gguf > $(OLDEST)/bounds.txt
	$(OLDEST)/bin/pip install --quiet -c $(OLDEST)/bounds.txt -e ".[dev]"
	touch $@

quickstart: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/tptt quickstart --output-dir $(OUT)

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks tools setup.py
	$(BIN)/ruff format --check src tests benchmarks tools setup.py
	$(BIN)/mypy

test: lint
	$(PYTEST) $(BIN)/pytest -q -n 2

test-newest: $(NEWEST)/.installed
	$(NEWEST)/bin/pip list 2>/dev/null | grep -iE "^(torch|transformers|peft|accelerate|datasets|trl) "
	$(PYTEST) $(NEWEST)/bin/pytest -q -n 2

test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/pip list 2>/dev/null | grep -iE "^(torch|transformers|peft|accelerate|datasets|trl) "
	$(PYTEST) $(OLDEST)/bin/pytest -q -n 2

# what breaks first when transformers moves, in the newest environment: minutes
contract: $(NEWEST)/.installed
	$(PYTEST) $(NEWEST)/bin/pytest -q -n 2 -m contract

test-slow: $(STAMP)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev,quant]"
	HF_HUB_OFFLINE=1 $(BIN)/pytest -q -m slow

clean:
	rm -rf $(VENV) $(NEWEST) $(OLDEST) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
