# `make demo` and `make test` are all a newcomer needs; both set up .venv first if it is not there.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: demo test lint setup clean

demo: setup ## the whole method on the embedded tiny pair, in two to three minutes
	$(VENV)/bin/lep

# Of several workers each keeps to one core: threads that wait for a core of another's slow all down.
test: setup $(STAMP)-tests ## ruff, then every test, by as many processes as there are cores, up to four
	$(VENV)/bin/ruff check lep tests conf
	$(VENV)/bin/ruff format --check lep tests
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest --numprocesses logical --maxprocesses 4 --dist loadfile

lint: setup ## style and types
	$(VENV)/bin/ruff check --fix lep tests
	$(VENV)/bin/ruff format lep tests
	$(VENV)/bin/pyright

setup: $(STAMP)

# The pinned versions first: torch among them, so that nothing pulls in another build of it.
$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "lep needs Python 3.11 or newer; found $$($(PYTHON) --version). Try: make demo PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

# What only the tests need beside it: optional extras of the package.
$(STAMP)-tests: $(STAMP) requirements-tests.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-tests.txt
	@touch $(STAMP)-tests

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
