# Targets: setup, torch, demo, test, lint, bench, lock, install, uninstall, bundle, deb. Everything lives in .venv/; nothing
# else on the machine is touched except by `make test`, which installs Debian packages the tests need when it runs as root,
# and by `sudo make install`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup torch demo test lint bench lock clean test-system-packages install uninstall bundle deb

setup: $(STAMP)

$(STAMP): requirements.lock requirements-dev.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# For `lineward train --tier full`. Outside the lock: which build is right depends on the machine (TORCH=... for another).
TORCH ?= torch==2.13.0
torch: setup
	$(BIN)/python -m pip install --quiet "$(TORCH)"

demo: setup
	$(BIN)/lineward demo

# Debian packages used by tests: a real broker and its clients.
test-system-packages:
	@bash tests/system/packages.sh

# Files of tests side by side; one after the other with TEST_PROCESSES=0.
TEST_PROCESSES ?= 2
test: setup test-system-packages
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/lineward bench
	$(BIN)/python bench/ledger.py
	$(BIN)/python bench/delivery.py

# The service on this machine: /opt/lineward, /etc/lineward, /var/lib/lineward. Again: an upgrade.
install:
	bash scripts/install.sh

# Keeps configuration and data; `sudo make uninstall PURGE=1` does not.
uninstall:
	PURGE=$(PURGE) bash scripts/install.sh uninstall

# Wheels for a machine without internet, with their installer, in dist/.
bundle:
	bash scripts/bundle.sh

# A Debian package, in dist/.
deb:
	bash scripts/deb.sh

# Hashes for every platform, no index address. Needs uv.
lock:
	uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 pyproject.toml -o requirements.lock
	uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 --group dev -c requirements.lock -o requirements-dev.lock

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
