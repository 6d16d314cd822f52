# Every target makes its own environment in .venv when it is absent.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: venv demo test test-slow lint clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[mmcv,demo,report,test]'
	touch $@

demo: venv
	$(BIN)/python tools/demo.py --out runs/demo

test: venv
	$(BIN)/python -m pytest -m 'not slow' --numprocesses 2 --dist worksteal --durations 10

# Whole commands on whole clusters, stopped and started again.
test-slow: venv
	$(BIN)/python -m pytest -m slow --durations 10

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
