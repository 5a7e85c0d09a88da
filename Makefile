# Everything a fresh machine needs: `make demo` and `make test`. Python 3.11 or newer is all they ask for.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test check lint lock clean

demo: $(INSTALLED) ## the main job on the bundled cohort
	rm -rf .demo
	$(BIN)/crmo-fhir demo -o .demo

test: check ## everything that must hold

check: lint ## ruff, mypy, import contracts, tests
	$(BIN)/pytest

lint: $(INSTALLED)
	$(BIN)/ruff check src tests fixtures
	$(BIN)/ruff format --check src tests fixtures
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: $(INSTALLED) ## pin what pyproject.toml allows, with hashes
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --group dev pyproject.toml -o requirements.lock

$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

clean:
	rm -rf .venv .demo build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
