# Every target needs Python 3.11 or newer and nothing else; it creates .venv first.

PYTHON ?= python3
BIN := .venv/bin
DEMO := checkpoints/demo

.PHONY: demo test check test-slow test-matrix test-faults bench clean

.venv/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint constraints.txt
	touch $@

demo: .venv/installed
	$(BIN)/seqtk-train recipe=demo save_dir=$(DEMO)
	$(BIN)/seqtk-average checkpoint=$(DEMO)
	$(BIN)/seqtk-generate checkpoint=$(DEMO)/average.safetensors data=data-bin/demo split=test output=$(DEMO)/test.de
	$(BIN)/seqtk-score hypothesis=$(DEMO)/test.de reference=data-bin/demo/text/test.de
	@echo; echo "Ten of them:"
	@paste -d '\n' data-bin/demo/text/test.en $(DEMO)/test.de | head -n 20 | sed 'n; s/^/  → /'
	@echo; echo "Curves: $(BIN)/tensorboard --logdir $(DEMO)/tensorboard"

# One process runs all tests of a file, so that the fixtures of a module are made once.
test: .venv/installed
	$(BIN)/python -m pytest -m 'not slow' -n 2 --dist loadfile

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-slow: .venv/installed
	$(BIN)/python -m pytest -m 'slow and not matrix' -n 2

test-matrix: .venv/installed
	$(BIN)/python -m pytest -m matrix -n 2

test-faults: .venv/installed
	SEQTK_KILLS=200 $(BIN)/python -m pytest tests/e2e/test_faults.py tests/e2e/test_kill.py tests/e2e/test_resume_matrix.py tests/distributed/test_lost_processes.py

bench: .venv/installed
	$(BIN)/python tools/bench_preprocess.py
	$(BIN)/python tools/bench_training.py

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
