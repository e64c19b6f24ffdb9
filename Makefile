# make course   set everything up, then run the lessons into build/course/
# make test     set everything up, then pass the tests
# make lab      open the lessons in JupyterLab
# In a few minutes instead of twenty: make course PROFILE=smoke
# A Python of your own: make course PYTHON=python3.12

PYTHON ?= python3
PROFILE ?= laptop
BIN := .venv/bin

.PHONY: setup course test lab lint clean

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
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

lab: setup
	@$(BIN)/jupyter lab notebooks

clean:
	rm -rf .venv build runs
