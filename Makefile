# Everything runs in .venv, which is made once; see README.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= runs/quickstart-$(shell date +%Y%m%d-%H%M%S)

.PHONY: quickstart test test-slow lint venv clean

venv: $(STAMP)

# torch first and pinned: an unpinned torch on a CPU machine pulls gigabytes of CUDA
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev,trl]"
	touch $@

quickstart: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/tptt quickstart --out $(OUT)

lint: $(STAMP)
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/mypy

test: lint
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2

test-slow: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/pytest -q -m slow

clean:
	rm -rf $(VENV) runs build src/*.egg-info
