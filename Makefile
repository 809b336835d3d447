# Two commands: `make sweep` (the embedded default, from an empty clone) and `make test`. `make peers` is for `make
# peer-references` and benchmarks/merging.py.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PEERS := .peers/mergekit
STORAGE ?= runs
REPORT ?= report
FAIRSEQ := .peers/fairseq
# The first interpreter that runs and is 3.10 to 3.13; override with PYTHON=/path/to/python.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3.10 python3; do \
	if $$name -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then echo $$name; break; fi; done)

.PHONY: sweep smoke test docs all-tasks test-slow test-faults lint install install-dev fairseq peers peer-references peers-s3prl clean

sweep: $(VENV)/installed
	$(BIN)/python launch/sweep_alpha.py --address local --storage $(STORAGE) --report $(REPORT)

# Every shipped space that needs no download, in small: minutes in all, in $(STORAGE)-smoke.
smoke: $(VENV)/installed
	for space in alpha alpha_full lambda strategies several_tasks baselines search_alpha_lambda search_layerwise search_strategy; do \
		echo "== $$space"; $(BIN)/speechft run --smoke --space $$space --storage $(STORAGE) || exit 1; done

test: $(VENV)/tests-installed fairseq lint
	$(BIN)/python -m pytest

# Every task of SUPERB from a folder in its real layout to its metrics, on one and on four workers: minutes, so not among the tests.
all-tasks: $(VENV)/tests-installed
	$(BIN)/python -W ignore -m tests.e2e.all_tasks

# The documentation site, strict: a link that leads nowhere is an error. The tests build it, too.
docs: $(VENV)/tests-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "open site/index.html"

# The tests that take minutes, which `make test` leaves out.
test-slow: $(VENV)/tests-installed
	$(BIN)/python -m pytest -m slow

# Every fault of docs/reliability.md, with a table; then kill -9 of workers at random updates, for every task, and for two of them on Ray.
test-faults: $(VENV)/tests-installed
	$(BIN)/python -m tests.fault_rows
	$(BIN)/python -W ignore -m tests.e2e.faults --ray

lint: $(VENV)/tests-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/installed

# The tools of CONTRIBUTING.md: what the tests need, and pre-commit.
install-dev: $(VENV)/tests-installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pre-commit install

$(VENV)/installed: pyproject.toml constraints.txt scripts/fix_torchaudio.py
	@test -n "$(PYTHON)" || { echo "speechft_ray needs Python 3.10, 3.11, 3.12 or 3.13: install one, or run make PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	$(BIN)/python scripts/fix_torchaudio.py
	$(BIN)/python -m compileall -q speechft_ray  # pip compiles what it copies, and not a checkout
	@touch $@

$(VENV)/tests-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	$(BIN)/python scripts/fix_torchaudio.py
	$(BIN)/python -m compileall -q tests
	@touch $@

# What s3prl's own downstream code calls beside s3prl itself, for benchmarks/parity.py; the environment stays as it is.
peers-s3prl: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target .peers/s3prl editdistance==0.8.1 h5py==3.16.0 lxml==6.1.3 dtw-python==1.9.0

# fairseq loads what we export for it in the tests. It has a folder of its own, takes 30 seconds and a compiler.
fairseq: $(VENV)/tests-installed
	@$(MAKE) --no-print-directory $(FAIRSEQ)/ready || echo "fairseq could not be built here: its test is skipped"

$(FAIRSEQ)/ready: tests/peers/fairseq.txt
	rm -rf $(FAIRSEQ)
	$(BIN)/python -m pip install --quiet --no-deps --target $(FAIRSEQ) --requirement tests/peers/fairseq.txt
	PYTHONPATH=$(FAIRSEQ) $(BIN)/python -W ignore tests/peers/fairseq_judge.py
	@touch $@

peers: $(PEERS)/installed

# What the peer computes on small inputs, kept in tests/data/merging_peers and merging_recipes so that the tests need no peer.
peer-references: peers
	$(PEERS)/bin/python tests/peers/make_merge_references.py
	$(BIN)/python -m tests.merging.recipe_cases
	$(PEERS)/bin/python tests/peers/make_recipe_references.py

# torch comes first, at our own version: the build that is at hand is kept then.
$(PEERS)/installed: constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(PEERS)/bin/python -m pip install --quiet mergekit==0.1.5
	@touch $@

clean:
	rm -rf $(VENV) .peers build site *.egg-info .pytest_cache .mypy_cache .ruff_cache
