# Everything here makes .venv first; nothing else has to be installed by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
OUT ?= demo-out
TOGETHER := --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: demo test test-all docs lint clean

demo: $(VENV)/.ready
	$(BIN)/wsssfast demo --out $(OUT)

test: $(VENV)/.ready
	$(BIN)/python -m pytest $(TOGETHER) -m "not slow and not gpu"

test-all: $(VENV)/.ready
	$(BIN)/python -m pytest $(TOGETHER) -m "not gpu"

docs: $(VENV)/.ready
	$(BIN)/python -m sphinx -W --keep-going -q docs build/docs
	@echo "The pages are at $(CURDIR)/build/docs/index.html"

# Type-checked as installed: checkers cannot follow the editable layout.
lint: $(VENV)/.ready
	$(PIP) --editable ".[lint]"
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	rm -rf build && $(PIP) --no-deps --target build/lint .
	cd build/lint && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p wsssfast
	cd build/lint && MYPYPATH=. ../../$(BIN)/mypy --config-file ../../pyproject.toml ../../tests/typed/user.py

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "wsssfast needs Python 3.11 or later; set PYTHON=..."; exit 2; }
	@echo "Installing into $(VENV): PyTorch with CUDA and the rest, 6 GB, some minutes without a word."
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[test,docs]"
	$(PIP) --editable ".[crf]" || \
	    echo "pydensecrf could not be built (it needs g++ and the Python headers); all else works."
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
