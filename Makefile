# The two commands of the README, and what they rest on. Needs Python 3.11 or 3.12, git, and nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile
export OMP_NUM_THREADS ?= 1

.PHONY: quickstart test coverage docs lock clean

quickstart: .venv/installed  ## make the houses, export, train, evaluate: the embedded default
	$(BIN)/python -m habitat_baselines.run --config-name=vlnr1_sft

test: .venv/installed  ## lint, types, and the whole test suite, quick tests first
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -m "not slow"
	$(PYTEST) -m slow --no-loadscope-reorder

# Of its own, since coverage makes the tests half as long again.
coverage: .venv/installed  ## the quick tests with their coverage, which has a floor
	$(PYTEST) -m "not slow" --cov

docs: .venv-docs/installed  ## the site of docs/, into site/; a broken link ends it
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

# Of its own: mkdocstrings reads the source without importing it, so neither torch nor Habitat is needed.
.venv-docs/installed: requirements/docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/docs.txt
	touch $@

.venv/installed: requirements/bootstrap.txt requirements/locked.txt pyproject.toml embedded_sim/pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v in ((3, 11), (3, 12)) or sys.exit("habitat-vlnr1 needs Python 3.11 or 3.12, but %s is %d.%d: install it or run make PYTHON=/path/to/python3.11" % (sys.executable, *v))'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python --require-hashes -r requirements/locked.txt
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation -e . -e embedded_sim
	touch $@

lock:  ## pin and hash every dependency anew
	echo uv | $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header -p 3.11 - -o requirements/bootstrap.txt
	$(BIN)/uv pip compile --quiet --generate-hashes --no-annotate --no-header -p 3.11 --no-emit-package habitat-embedded-sim \
		--extra dev pyproject.toml embedded_sim/pyproject.toml -o requirements/locked.txt
	printf '%s\n' mkdocs-material 'mkdocstrings[python]' ruff | \
		$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header -p 3.11 - -o requirements/docs.txt

clean:  ## everything that was made, except the data folder
	rm -rf .venv .venv-docs site outputs .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage*
