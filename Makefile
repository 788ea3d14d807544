# Two commands matter: `make demo` and `make test`. Both set up what they need, on a fresh machine, as root or not.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
READY := $(VENV)/.ready
FIRMWARE_PACKAGES := arm-none-eabi-gcc=gcc-arm-none-eabi qemu-system-arm=qemu-system-arm cc=gcc
BROWSER_PACKAGES := chromium=chromium

.PHONY: demo test lint docs bench clean help
.DEFAULT_GOAL := help

help:
	@echo "make demo    images and a chip budget in, firmware that ran and a report out (runs/digits)"
	@echo "make test    the whole suite, with lint and types"
	@echo "make lint    ruff, mypy, import contract"
	@echo "make docs    the documentation site in site/"
	@echo "make bench   instructions per multiply-accumulate of the kernels, beside published figures"
	@echo "make clean   remove everything that was made here"

demo: $(READY)
	@scripts/system-packages.sh $(FIRMWARE_PACKAGES)
	@out=runs/digits; n=2; while [ -e $$out ]; do out=runs/digits-$$n; n=$$((n + 1)); done; \
	if [ -e $$out.partial ]; then resume=--resume; else resume=; fi; \
	$(BIN)/lilliput build --data digits --sram 16KB --flash 128KB --out $$out $$resume

test: $(READY) lint
	@scripts/system-packages.sh $(FIRMWARE_PACKAGES) $(BROWSER_PACKAGES)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations 10 -q

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(READY)
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --quiet --site-dir site

bench: $(READY)
	@scripts/system-packages.sh $(FIRMWARE_PACKAGES)
	$(BIN)/python benchmarks/mcu_kernels.py

clean:
	rm -rf $(VENV) site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)
