# Each target makes its own .venv from constraints.txt first (one target at a time then): Python 3.11 to 3.13 and pip are enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# tests start hundreds of processes: where this is set, each compiles all that it imports anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint types tests slow gpu bench chaos cluster-test fuzz docs clean

demo: $(VENV)/.ready
	$(BIN)/ray-mlc demo build/demo

# tests wait for Ray half of their time: mypy has it meanwhile
test: lint
	$(MAKE) --no-print-directory --jobs=2 types tests

lint: $(VENV)/.ready-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.ready-test
	$(BIN)/mypy

# several processes share the cores: threads of PyTorch that wait for each other would take them all
tests: $(VENV)/.ready-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadgroup --no-loadscope-reorder

# what `make test` leaves out for the sake of time
slow: $(VENV)/.ready-test
	$(BIN)/python -m pytest -m slow

# on a machine with a CUDA device; prints one table
gpu: $(VENV)/.ready-test
	$(BIN)/python -m pytest tests/gpu -rs

# the short form, on synthetic texts: under ten minutes; benchmarks/README.md has the long one
BENCH ?= build/bench-$(shell date +%F).jsonl
bench: $(VENV)/.ready-bench
	$(BIN)/python benchmarks/short.py $(BENCH)

# an hour or two; run again to go on where it was stopped
CHAOS ?= benchmarks/results/$(shell date +%F)-chaos.jsonl
chaos: $(VENV)/.ready-test
	PYTHONPATH=tests $(BIN)/python -m chaos.run --output $(CHAOS)

# a cluster of real processes loses a node in each job; ten minutes, prints a protocol
cluster-test: $(VENV)/.ready-test
	PYTHONPATH=tests $(BIN)/python -m cluster.run

# about half an hour; `make fuzz EXAMPLES=1000 SEED=7` for less
EXAMPLES ?= 20000
SEED ?= 1
fuzz: $(VENV)/.ready-test
	cd tests && $(abspath $(BIN))/python -m fuzz.long --examples $(EXAMPLES) --seed $(SEED)

# the documentation site, in build/site
docs: $(VENV)/.ready-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# pip compiles each module of a package otherwise, most of which nobody imports
INSTALL = $(BIN)/python -m pip install --no-compile -c constraints.txt

$(VENV)/.ready: $(VENV)/.there
	$(INSTALL) -e .
	touch $@

$(VENV)/.ready-test: $(VENV)/.there
	$(INSTALL) -e '.[test]'
	touch $(VENV)/.ready $@

$(VENV)/.ready-bench: $(VENV)/.there
	$(INSTALL) -e '.[bench]'
	touch $(VENV)/.ready $(VENV)/.ready-test $@

$(VENV)/.there: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	touch $@

clean:
	rm -rf build $(VENV)
	find . -name __pycache__ -type d -prune -exec rm -r {} +
