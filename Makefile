# Two commands for a fresh clone: `make demo` and `make test`. Both install what they need into .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := build/demo
# One thread each: several processes whose threads wait for each other's cores take many times as long.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile
NATIVE_SOURCES := $(wildcard runtime/native/*)
CPP_FILES := $(wildcard runtime/native/*.cc runtime/native/*.h runtime/native/harness/* examples/*.cc examples/*.h)

.PHONY: demo test test-all lint clean

demo: $(VENV)/installed
	mkdir -p $(DEMO)
	$(BIN)/cnpass optimize models/digits-vgg9.onnx -o $(DEMO)/digits-vgg9.cnpass.onnx --run $(DEMO)/run

test: $(VENV)/installed
	$(PYTEST) -m "not slow"

test-all: $(VENV)/installed
	$(PYTEST)

lint: $(VENV)/installed
	$(BIN)/python scripts/link_packages.py
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --style=file:runtime/native/.clang-format --dry-run -Werror $(CPP_FILES)

$(VENV)/installed: pyproject.toml constraints.txt CMakeLists.txt $(NATIVE_SOURCES)
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --retries 10 -e '.[dev]'
	touch $@

clean:
	rm -rf build dist .venv
