VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: demo install install-dev test lint format clean

demo: install  ## set up, then train, prune, measure the embedded recipe
	$(BIN)/tpsprune train recipes/digits.toml --again

install: $(BIN)/.installed  ## what a user needs

install-dev: $(BIN)/.installed-dev  ## with the optional libraries, tests and rules

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e .
	touch $@

$(BIN)/.installed-dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[test,lint]'
	touch $@ $(BIN)/.installed

test: install-dev  ## the whole suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

lint: install-dev  ## format, rules, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV)
