# Thin wrappers over the commands in README.md. Every target sets itself up on a bare machine.
PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_FLAGS ?=  # as in --index-url of the CPU builds
# Processes of the test suite, a core and about 2 GB each.
WORKERS ?= 2

.PHONY: setup demo test test-slow test-fuzz test-hub test-lowest coverage types style

setup: .venv/installed

.venv/installed: pyproject.toml
	@echo "setting up .venv: some minutes the first time"
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet "$(TORCH)" $(TORCH_FLAGS)
	.venv/bin/pip install --quiet --editable ".[dev]"
	touch $@

demo: setup
	.venv/bin/codeclade generate --out demo.png

test: setup
	.venv/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-slow: setup
	.venv/bin/python -m pytest -m slow

test-fuzz: setup
	.venv/bin/python -m pytest -m fuzz

test-hub: setup
	.venv/bin/python -m pytest -m fake_hub

# The lowest versions that pyproject.toml promises, but for torch, whose old builds are large.
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet "$(TORCH)" --requirement tests/lowest.txt
	# Left out: Chameleon's own config fails there, torch 2.6 decodes a batch a rounding apart, and
	# a T5 without weights starts from other numbers.
	PYTHONPATH=src .venv-lowest/bin/python -m pytest --ignore=tests/demo \
	    -k "not one_shard and not depend_on_the_batch_size and not undefined_or_defined and not without_a_decoder" \
	    --deselect "tests/components/test_pinned.py::test_calls_give_the_pinned_ids[text]" \
	    --deselect "tests/components/test_pinned.py::test_calls_give_the_pinned_ids[text_cluster]"

coverage: setup
	.venv/bin/python -m pytest --cov --cov-report=term

types: setup
	.venv/bin/pyright --pythonpath .venv/bin/python

style: setup
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .
