# The two commands are `make book` and `make test`; both work from a bare clone.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
PROFILE ?= smoke

.PHONY: help install book test check-recorded record lint figure clean
help:          ## show this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(STAMP) ## make .venv with the pinned requirements and the package
$(STAMP): requirements.txt pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info[:2] < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.11 …')"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --quiet --requirement requirements.txt
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

book: $(STAMP) ## execute chapters that changed (PROFILE=smoke), build the pages
	$(BIN)/repsim book --profile $(PROFILE)

test: $(STAMP) ## run the tests; those of the pages need `make book` and a Chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# Processors round otherwise and training amplifies it. With these instructions and one thread, recorded cells come out.
AVX2 = OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2

check-recorded: $(STAMP) ## train whole recorded cells again: before a table is recorded
	$(AVX2) $(BIN)/python -m pytest tests/test_recorded.py -m recorded

record: $(STAMP) ## run what a recorded table lacks, and add it: make record EXPERIMENT=task_only
	$(AVX2) $(BIN)/repsim run $(EXPERIMENT) --profile laptop --record

lint: $(STAMP) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

figure: $(STAMP) ## draw the main figure from the recorded results
	$(BIN)/repsim figure --out chapters/images/task_overlap.svg

clean:         ## remove built pages and executed chapters (not .venv, not the store)
	rm -rf _build
