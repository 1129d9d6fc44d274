# Everything a person types. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= $(shell nproc)
PIP := $(BIN)/python -m pip --disable-pip-version-check
REQUIREMENTS := tests/python
CPP_FILES = $(shell git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')
# GPU code for the devices of this machine only; CI and `make wheel` say otherwise.
export TRIVIUM_CUDA ?= AUTO
export TRIVIUM_HIP ?= AUTO
export TRIVIUM_CUDA_ARCHS ?= present
export TRIVIUM_HIP_ARCHS ?= present
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)

.PHONY: help demo test lint format asan ubsan tsan fuzz bench wheel clean install ctest pytest kernel-table \
  hardware hardware-kit

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | column -t -s:

demo: install  ## build, run the batch driver on the embedded model, print tokens/s and the completions
	scripts/demo.sh $(BIN)

test: deps-test $(VENV)/.test-ready install build/dev  ## everything from a fresh clone, ctest and pytest
	$(BIN)/python scripts/run_tests.py --build build/dev --python $(BIN)/python --jobs $(JOBS)

ctest: deps-test build/dev  ## the C++ tests alone
	$(PYTHON) scripts/run_tests.py --build build/dev --jobs $(JOBS)

pytest: $(VENV)/.test-ready install  ## the Python tests alone
	$(BIN)/python -m pytest

lint: deps-lint $(VENV)/.lint-ready  ## formatting of C++ and Python, and ruff's checks
	clang-format-15 --dry-run -Werror $(CPP_FILES)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: deps-lint $(VENV)/.lint-ready  ## format everything in place
	clang-format-15 -i $(CPP_FILES)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

asan: deps-test build/asan  ## the C++ tests with AddressSanitizer and UndefinedBehaviorSanitizer
	$(PYTHON) scripts/run_tests.py --build build/asan --jobs $(JOBS)

ubsan: deps-test build/ubsan  ## the C++ tests with UndefinedBehaviorSanitizer alone
	$(PYTHON) scripts/run_tests.py --build build/ubsan --jobs $(JOBS)

tsan: deps-test build/tsan  ## the C++ tests with ThreadSanitizer
	TSAN_OPTIONS=halt_on_error=1 $(PYTHON) scripts/run_tests.py --build build/tsan --jobs $(JOBS)

fuzz: deps-fuzz build/fuzz  ## every libFuzzer target, FUZZ_SECONDS (30) each
	scripts/run_fuzzers.sh build/fuzz $(or $(FUZZ_SECONDS),30)

BENCH_MODEL := build/bench/gpt-oss-20b-4-layers
bench: install $(VENV)/.test-ready build/bench $(BENCH_MODEL)/model.safetensors  ## speed beside transformers and the machine's limits (writes a 4.2 GB model first)
	$(BIN)/python bench/moe.py $(BENCH_MODEL) --roof build/bench/bench/trivium_roof
	$(BIN)/python bench/lut.py --roof build/bench/bench/trivium_lut_roof
	$(BIN)/python bench/mlstm.py --roof build/bench/bench/trivium_roof

$(BENCH_MODEL)/model.safetensors: | $(BIN)/python
	$(BIN)/python bench/make_checkpoint.py $(BENCH_MODEL)

wheel: export TRIVIUM_CUDA := ON
wheel: export TRIVIUM_HIP := ON
wheel: export TRIVIUM_CUDA_ARCHS := all
wheel: export TRIVIUM_HIP_ARCHS := all
wheel: deps-gpu $(VENV)/.test-ready  ## the wheel with CUDA and HIP for all targets in dist/, checked and tried in a clean environment
	$(PIP) wheel --no-deps -w dist . $(JAX_FLAGS) -Ccmake.define.CMAKE_CUDA_FLAGS=-Xptxas=--warning-as-error
	$(PYTHON) scripts/check_wheel.py

kernel-table: export TRIVIUM_CUDA := ON
kernel-table: export TRIVIUM_HIP := ON
kernel-table: export TRIVIUM_CUDA_ARCHS := 90a
kernel-table: export TRIVIUM_HIP_ARCHS := gfx90a gfx942 gfx1100
kernel-table: build/dev  ## docs/kernels.md from the compiled kernels (needs both GPU compilers)
	cmake --build build/dev --target kernel_table

hardware:  ## tests and measurements on this machine's GPU; PARTS="build test sanitize bench" chooses
	$(PYTHON) scripts/hardware.py $(if $(PARTS),--parts $(PARTS))

hardware-kit:  ## headers and static libraries for a GPU machine without network, in .hardware-kit/
	scripts/hardware_kit.sh .hardware-kit

clean:  ## remove what was built
	rm -rf build dist $(VENV)

deps-%:
	scripts/install-deps.sh build $(filter-out build,$*)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

install: deps-build $(BIN)/python
	@echo "building and installing the package into $(VENV) (a few minutes the first time)"
	$(PIP) install -q . $(JAX_FLAGS)

# trivium.jax is built where jax is installed already, as for the tests.
JAX_FLAGS = $(shell $(BIN)/python -c "import jax; print('-Ccmake.define.TRIVIUM_JAX=ON -Ccmake.define.TRIVIUM_JAX_INCLUDE=' + jax.ffi.include_dir())" 2>/dev/null)

$(VENV)/.test-ready: $(REQUIREMENTS)/requirements-torch.txt $(REQUIREMENTS)/requirements.txt | $(BIN)/python
	$(PIP) install -q -r $(REQUIREMENTS)/requirements-torch.txt
	$(PIP) install -q -r $(REQUIREMENTS)/requirements.txt
	touch $@

$(VENV)/.lint-ready: $(REQUIREMENTS)/requirements-lint.txt | $(BIN)/python
	$(PIP) install -q -r $<
	touch $@

# Always asks ninja, which knows what is stale.
PRESETS := build/dev build/asan build/ubsan build/tsan build/fuzz build/bench
.PHONY: $(PRESETS)
$(PRESETS): build/%: | deps-build
	cmake --preset $*
	cmake --build --preset $*
