# Everything runs in .venv, which is made once; see README.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# index to take torch from, for example that of its CPU builds; empty: pip's own
TORCH_INDEX ?=
# a folder of its own for every run, so that no earlier result is lost
OUT ?= runs/quickstart-$(shell date +%Y%m%d-%H%M%S)

.PHONY: quickstart test test-slow lint venv clean

venv: $(STAMP)

# torch first, alone and pinned, so that nothing installed after it chooses another build
$(STAMP): pyproject.toml setup.py constraints.txt $(wildcard src/tptt/ops/native/kernels/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "tptt needs Python 3.11 or newer (transformers 5.23 does); try: make PYTHON=python3.12 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev,trl]"
	touch $@

quickstart: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/tptt quickstart --out $(OUT)

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks tools setup.py
	$(BIN)/ruff format --check src tests benchmarks tools setup.py
	$(BIN)/mypy

test: lint
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2

test-slow: $(STAMP)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev,trl,quant]"
	HF_HUB_OFFLINE=1 $(BIN)/pytest -q -m slow

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
