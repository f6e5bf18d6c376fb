PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install native demo test lint clean

install: $(VENV)/.installed

# torch first and alone: a plain version pin keeps an index's CPU build from being replaced.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --editable ".[diffusers,dev]"
	touch $@

# After a change of the C++ sources; the library goes beside native.py.
native:
	cmake -S . -B build/native
	cmake --build build/native

demo: install
	$(BIN)/python -m fewbit.demo.show --output demo-output

# One thread: the tests' tensors are so small that threads only wait for each other.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

lint: install
	$(BIN)/ruff format --check src tests benchmarks studies
	$(BIN)/ruff check src tests benchmarks studies
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo-output build
