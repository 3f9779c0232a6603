# Thin wrappers over the commands in README.md. Every target sets itself up on a bare machine.
PYTHON ?= python3
TORCH ?= torch==2.13.0

.PHONY: setup demo test test-fuzz test-hub style

setup: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet "$(TORCH)"
	.venv/bin/pip install --quiet --editable ".[dev]"
	touch $@

demo: setup
	.venv/bin/codeclade generate --out demo.png

test: setup
	.venv/bin/python -m pytest

test-fuzz: setup
	.venv/bin/python -m pytest -m fuzz

test-hub: setup
	.venv/bin/python -m pytest -m fake_hub

style: setup
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .
