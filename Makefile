# Three commands: `make demo`, `make test`, `make lint`. Needs Python 3.11 or newer and make; installs into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One thread per process: the suite and the demo run one process per core.
export OMP_NUM_THREADS ?= 1
export MPLBACKEND := Agg

.PHONY: demo test lint torture bench clean

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; set PYTHON=python3.12 (or newer)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/compare reproduce hui2022 --scale demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 -m "not torture"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

torture: $(VENV)/.installed
	$(BIN)/python -m pytest -m torture --timeout 7200

clean:
	rm -rf $(VENV) runs
