# make course   set everything up, then run the lessons into build/course/
# make test     set everything up, then pass the tests: minutes
# make check    all tests (the slow ones, too), lint, types and known vulnerabilities
# make gpu      on a machine with an NVIDIA GPU: docs/gpu.md
# make lab      open the lessons in JupyterLab
# make refresh  remake tables, README, gallery, cards and lessons after the shipped models changed;
#               .venv/bin/sgmgm refresh -n only says what it would do
# In a few minutes instead of twenty: make course PROFILE=smoke
# A Python of your own: make course PYTHON=python3.12

PYTHON ?= python3
PROFILE ?= laptop
BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal --durations 20

.PHONY: gpu gpu-list setup course test check audit refresh lab lint clean

setup: .venv/ready

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
		{ echo "sgmgm needs Python 3.11 to 3.14: make PYTHON=python3.12"; exit 2; }
	@echo "== setting up .venv (torch is large: a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[course,test]'
	@touch $@

course: setup
	@echo "== running the lessons (profile $(PROFILE))"
	@$(BIN)/sgmgm course run --profile $(PROFILE) --out build/course

test: setup
	@echo "== running the tests"
	@$(PYTEST)

# with the real data sets where SGMGM_DATA names their folder
check: test lint audit
	@echo "== running the slow tests"
	@$(PYTEST) --hypothesis-profile check -m "check or generated $(if $(SGMGM_DATA),or real)"

refresh: setup
	@$(BIN)/sgmgm refresh

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

audit: setup
	@echo "== looking for known vulnerabilities"
	@.ci/audit

# with the machine's own Python where `make setup` has not run: nothing is installed
OUT ?= build/gpu
MINUTES ?= 9
GPU := PYTHONPATH=. $(or $(wildcard $(BIN)/python),$(PYTHON)) -m scripts.gpu

gpu:
	@$(GPU) --out "$(OUT)" --minutes $(MINUTES)

gpu-list:
	@$(GPU) --list

lab: setup
	@$(BIN)/jupyter lab notebooks

clean:
	rm -rf .venv build runs
