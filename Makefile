PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LABEL_PYTHON ?= $(shell python3.11 -c "" 2> /dev/null && echo python3.11 || echo $(PYTHON))
LABEL_VENV := .venv-label
LABEL_BIN := $(LABEL_VENV)/bin
AUDIT_VENV := .venv-audit
LOCKS ?=

# compiled modules are kept, as hundreds of processes of the tests import the same ones
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-robustness test-wheel test-browser test-label test-orthanc check audit dist lock golden weights zoo-check zoo-entry configs docs clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.samples  ## train a small model on sample data and show what it does, in ./demo
	$(BIN)/monai-diffae demo --out demo

# one process runs a file, so that its fixtures are made once; files come in the order of their names, heavy ones first
PYTEST := -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 15 --durations-min 0.5

test: $(VENV)/.tests  ## the tests, without the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m "not slow and not browser"

test-all: $(VENV)/.dev $(LABEL_VENV)/.label-tests  ## all tests, also the slow ones; Chromium and Python 3.11 for some of them
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)
	OMP_NUM_THREADS=1 $(LABEL_BIN)/python $(PYTEST) $(LABEL_TESTS)

test-robustness: $(VENV)/.tests  ## the reliability goals (docs/reliability.md), also the long campaigns, and their table
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m "goal" tests

test-wheel: $(VENV)/.dev  ## build the wheel, install it elsewhere, and train and embed with it
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_wheel.py

test-browser: $(VENV)/.dev  ## the pages in a browser; needs Debian's chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "browser and not slow" -rs tests/apps/pages tests/explorer

LABEL_TESTS = tests/label tests/data/test_dicom*.py

test-label: $(LABEL_VENV)/.label-tests  ## the tests with MONAI Label, in an environment of its own (Python 3.11)
	OMP_NUM_THREADS=1 $(LABEL_BIN)/python $(PYTEST) -m "not slow" $(LABEL_TESTS)

# in a network of its own, as Orthanc listens on all addresses; without the right to make one, it refuses other machines
NETWORK = $(shell unshare -rn ip link set lo up 2> /dev/null && echo "unshare -rn sh -c 'ip link set lo up && exec \"\$$@\"' sh")

test-orthanc: $(LABEL_VENV)/.label-tests  ## the tests with Orthanc; needs Debian's orthanc-dicomweb
	OMP_NUM_THREADS=1 $(NETWORK) $(LABEL_BIN)/python -m pytest -m orthanc -rs tests/label

check: $(VENV)/.dev  ## formatting, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# in an environment of its own, so that the tools of development are neither listed nor searched
audit: $(VENV)/.audit  ## list what an installation brings in sbom.json (CycloneDX), and search it for known vulnerabilities
	$(PYTHON) -m venv --clear $(AUDIT_VENV)
	$(AUDIT_VENV)/bin/python -m pip install --quiet --no-compile -e .
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-file sbom.json $(AUDIT_VENV)/bin/python
	$(BIN)/pip-audit --strict --skip-editable --progress-spinner off --path $(AUDIT_VENV)/lib/python*/site-packages

dist: $(VENV)/.dev  ## the source archive and the wheel of a release, in dist/
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

LOCK = $(BIN)/uv pip compile --quiet --upgrade --no-annotate --custom-compile-command "make lock" pyproject.toml

lock: $(VENV)/.dev  ## write the newest versions into .github/locks/, from which ci.yml installs
	$(LOCK) --universal --python-version 3.10 --extra dev --output-file .github/locks/dev.txt
	$(LOCK) --python-platform linux --python-version 3.11 --extra label-tests --output-file .github/locks/label.txt

golden: $(VENV)/.tests  ## train the stored tiny bundles again, and store the bundles of a new version
	$(BIN)/python tests/golden/make_golden.py

weights: $(VENV)/.tests  ## put a trained bundle's weights into bundles/: make weights WEIGHTS="--bundle my_model --name chest_xray ..."
	PYTHONPATH=tests/golden:tests/bundles $(BIN)/python tests/weights/make_weights.py $(WEIGHTS)

zoo-check: $(VENV)/.tests  ## the checks of MONAI's model zoo on each bundle, also the long ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/zoo

zoo-entry: $(VENV)/.tests  ## what a trained bundle needs for the model zoo: make zoo-entry ENTRY="--bundle my_model --name ..."
	$(BIN)/python tests/zoo/zoo_entry.py $(ENTRY)

configs: $(VENV)/.tests  ## generate the bundle runs of the commands
	$(BIN)/python tests/bundles/make_configs.py

docs: $(VENV)/.dev  ## the documentation as a site with search, in site/
	$(BIN)/sphinx-build -W --keep-going -q -b html docs site

clean:  ## remove the environment, caches and the demo's results
	rm -rf $(VENV) $(LABEL_VENV) $(AUDIT_VENV) demo sbom.json site build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# LOCKS is a folder of lock files, as in ci.yml; without it, the newest versions are installed.
# One stamp per extra: a second call installs nothing, a changed pyproject.toml does. Python compiles what is imported
# later anyway; pip would compile everything, one file after the other
$(VENV)/.%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile $(LOCKS:%=-c %/dev.txt) -e ".[$*]"
	touch $(if $(filter dev,$*),$(VENV)/.tests) $@  # dev has all that the tests need

$(LABEL_VENV)/.%: pyproject.toml
	test -x $(LABEL_BIN)/python || $(LABEL_PYTHON) -m venv $(LABEL_VENV)
	$(LABEL_BIN)/python -m pip install --quiet --no-compile $(LOCKS:%=-c %/label.txt) -e ".[$*]"
	touch $@
