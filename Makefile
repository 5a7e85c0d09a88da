# Everything a fresh machine needs: `make demo` and `make test`. Python 3.11 or newer is all they ask for.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
APART := tests/promises tests/unit tests/spec tests/property tests/oracle tests/sql_on_fhir tests/functional

.PHONY: demo test check lint lock promises schedules kill-everywhere releases bench-extract bench-bulk bench-disclosure bench-reports bench-metrics bench-map clean

demo: $(INSTALLED) ## the main job on the bundled cohort
	rm -rf .demo
	$(BIN)/crmo-fhir demo -o .demo

test: check ## everything that must hold

check: lint ## ruff, mypy, import contracts, tests: those that need no real server two at a time
	$(BIN)/pytest -n 2 $(APART)
	$(BIN)/pytest $(foreach one,$(APART),--ignore=$(one))

lint: $(INSTALLED)
	$(BIN)/ruff check src tests fixtures
	$(BIN)/ruff format --check src tests fixtures
	$(BIN)/mypy
	$(BIN)/lint-imports

promises: $(INSTALLED) ## the table promise → tests → status, from a run of the tests
	$(BIN)/pytest tests/promises tests/unit tests/functional --promises tests/promises/README.md

schedules: $(INSTALLED) ## 10,000 random fault schedules in place of 1,000 (hours)
	CRMO_FHIR_SCHEDULES=10000 $(BIN)/pytest -s tests/promises/test_schedules.py

kill-everywhere: $(INSTALLED) ## kill -9 at every system call of an extract, not only at a choice of them (needs strace)
	CRMO_FHIR_KILLS=all CRMO_FHIR_REQUIRE=strace $(BIN)/pytest tests/promises/test_crash.py

releases: $(INSTALLED) ## releases of 200 random cohorts at four thresholds against a reader, in place of 4 at one (an hour)
	CRMO_FHIR_RELEASES=200 $(BIN)/pytest tests/property/test_release.py

bench-extract: $(INSTALLED) ## ours beside a raw loop and smart-fetch, on one HAPI with 11,000 resources
	$(BIN)/python tests/bench/extract.py

bench-bulk: $(INSTALLED) ## the memory of an extract by bulk export of 1 GB
	$(BIN)/python tests/bench/bulk.py

bench-disclosure: $(INSTALLED) ## how much a release shows, beside plain primary and margin masking
	$(BIN)/python tests/bench/disclosure.py

bench-reports: $(INSTALLED) ## the reports of 1,000 children, and a ledger of a million rows
	$(BIN)/python tests/bench/reports.py

bench-metrics: $(INSTALLED) ## 100,000 courses counted and analysed, in under 10 s
	$(BIN)/python tests/bench/metrics.py

bench-map: $(INSTALLED) ## the children in a population of 1 M resources (RESOURCES=10000000 ROUNDS=3), beside DuckDB, orjson, fhir4ds-v2
	$(BIN)/python tests/bench/map.py --resources $(or $(RESOURCES),1000000) --rounds $(or $(ROUNDS),5)

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
