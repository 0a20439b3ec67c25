# Each target creates what it needs. CPython 3.11-3.15, Rust, a C compiler and make are enough to start.
# PYTHON is the interpreter for new virtual environments; an existing environment keeps its own.
PYTHON ?= $(shell .ci/pythons | head -n 1)
# Environment names are relative, because the path of this folder may contain spaces, which make cannot handle.
VENV ?= .venv
EXTRAS ?= train,test,dev
TOOLS := .venv-tools
NATIVE_VENV = .venv-native-$$("$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
MATURIN := maturin>=1.9,<2

PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
# Installs packages in a fraction of pip's time. Where it cannot, pip does.
UV := $(TOOLS)/bin/uv
RUST := $(shell find rust -name fuzz -prune -o -type f -print) Cargo.toml Cargo.lock

TESTS ?= tests
# Slow tests of packages without native code: they give the same result on every CPython.
PURE := environments evaluation trace/test_context.py $(addprefix corpus/test_corpus_,$(addsuffix .py,\
  contests describe duplicates filters functions inputs pipeline))
# What shows quickly whether the other native parts work on a CPython.
SMOKE := test_native_stub.py data/test_data_shards.py tokenizer/test_tokenizer_trace.py tokenizer/test_tokenizer_chat.py \
  support/test_jsonl.py cli/test_cli_record.py view

# zig links against the C library of manylinux2014 on any distribution.
ifeq ($(shell uname -s),Linux)
PORTABLE := --zig --compatibility manylinux2014
endif

.DELETE_ON_ERROR:
.PHONY: help demo model ablation check test test-fast test-native test-recorder lint lint-rust lint-python bench \
  bench-quick bench-compare docs wheel release clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(INSTALLED) ## run the full pipeline at a small scale; results in build/demo
	$(PY) -m cwm_core demo -o build/demo

MODEL := build/model
$(MODEL)/corpus: | $(INSTALLED)
	@mkdir -p $(MODEL)
	$(PY) -m cwm_core corpus programs --basic 100000 --wide 100000 --algorithm-calls 100 -o $@

$(MODEL)/shards: | $(MODEL)/corpus
	rm -rf $@.partial $(MODEL)/vocabulary
	$(PY) -m cwm_core tokenize $(MODEL)/corpus/train --tokenizer $(MODEL)/vocabulary --train-vocab 1024 \
	  --pattern "$$(cat configs/small/pattern.txt)" -o $@.partial
	mv $@.partial $@

# Packages that no model is trained on: their functions are for evaluation alone.
HELD_OUT_PACKAGES := toolz==1.0.0 inflection==0.5.1 more-itertools==10.8.0
$(MODEL)/packages: | $(INSTALLED)
	rm -rf $@.partial
	$(PY) -m pip install --quiet --no-deps --target $@.partial $(HELD_OUT_PACKAGES)
	mv $@.partial $@

$(MODEL)/held-out: | $(MODEL)/shards $(MODEL)/packages
	$(PY) -m cwm_core corpus functions $(addprefix $(MODEL)/packages/,toolz inflection more_itertools) \
	  --tokenizer $(MODEL)/vocabulary --context-tokens 512 --max-tokens 768 --max-frames 60 --budget 40 --calls 3 \
	  --license MIT --workers 1 -o $(MODEL)/functions
	rm -rf $@.partial
	cp -R $(MODEL)/corpus/held-out $@.partial
	$(PY) -m cwm_core import $(MODEL)/functions -o $@.partial/functions.cwmtraces
	mv $@.partial $@

EVALUATE = $(PY) -m cwm_core eval
model: | $(MODEL)/held-out ## train the small model for 2.5 hours, resumable, and put it into the package with its figures
	$(PY) -m cwm_core train configs/small/train.toml --processes auto
	$(PY) configs/small/ship.py weights $(MODEL)/run
	rm -rf $(MODEL)/figures
	$(EVALUATE) recordings $(MODEL)/held-out --max-new-tokens 2048 --batch-size 256 -o $(MODEL)/figures/recordings
	$(EVALUATE) failures $(MODEL)/held-out --max-new-tokens 2048 --batch-size 256 -o $(MODEL)/figures
	$(PY) configs/small/ship.py figures $(MODEL)/figures

ablation: $(INSTALLED) ## what traces teach, measured for hours on two cores, resumable; results in build/ablation
	$(PY) -m cwm_core ablation --workers 2 -o build/ablation

check: ## lint and fast tests: leaves out those that tests/slow.txt lists or that are marked slow
	$(MAKE) --jobs=2 test-fast lint-python lint-rust

test-fast: $(INSTALLED)
	$(PY) -m pytest $(TESTS) -m "not slow"

test: $(INSTALLED) ## all Python tests
	$(PY) -m pytest $(TESTS)

test-native: ## the tests that need no PyTorch, without it: make test-native PYTHON=python3.13
	$(MAKE) test EXTRAS=test VENV=$(NATIVE_VENV) TESTS="tests $(addprefix --ignore=tests/,$(PURE))"

test-recorder: ## the tests of the recorder, and a few of each other part: make test-recorder PYTHON=python3.15
	$(MAKE) test EXTRAS=test VENV=$(NATIVE_VENV) TESTS="tests/trace $(addprefix tests/,$(SMOKE))"

lint: lint-rust lint-python ## check format, lint and types, without changes

lint-rust: export PYO3_PYTHON = $(PYTHON)
lint-rust:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

lint-python: $(INSTALLED)
	$(PY) -m ruff format --check
	$(PY) -m ruff check
	$(PY) -m mypy

bench: $(INSTALLED) ## all benchmarks against their alternatives; results in build/bench.json
	@mkdir -p build
	$(PY) -m pytest benches --benchmark-json=build/bench.json --benchmark-quiet
	$(PY) benches/report.py build/bench.json

bench-quick: $(INSTALLED) ## run each benchmark once, to check that it works
	$(PY) -m pytest benches --benchmark-disable

bench-compare: $(INSTALLED) ## compare the speed of two commits: make bench-compare BASE=<commit> [ARGS="-k encode"]
	$(PY) benches/compare.py $(or $(BASE),$(error BASE=<commit> is missing)) $(ARGS)

docs: $(INSTALLED) ## build the documentation site in build/site; fails on broken links
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet

WHEELS ?= build/wheels
WHEELS_FOR ?= $(shell .ci/pythons)
wheel: $(TOOLS)/.installed ## build wheels for each supported CPython on this machine, in build/wheels
	rm -rf $(WHEELS)
	PATH="$(CURDIR)/$(TOOLS)/bin:$$PATH" maturin build --release --locked --out $(WHEELS) $(PORTABLE) \
	  $(addprefix -i ,$(WHEELS_FOR))

release: $(TOOLS)/.installed ## build the sdist and the wheels of a release in build/release, and check each in a new environment
	$(MAKE) wheel WHEELS=build/release
	PATH="$(CURDIR)/$(TOOLS)/bin:$$PATH" maturin sdist --out build/release
	$(TOOLS)/bin/python -m pip install --quiet "twine>=6,<8"
	$(TOOLS)/bin/python -m twine check --strict build/release/*
	.ci/check-release build/release

clean: ## remove build results; keep environments, but rebuild their extension
	rm -rf build target .pytest_cache .ruff_cache .hypothesis .benchmarks python/cwm_core/*.so .venv*/.installed
	find python tests benches -name __pycache__ -prune -exec rm -rf {} +

ifdef CWM_WHEELS # a folder of built wheels: install from it instead of building the extension again
WHEEL = $$(ls "$(CWM_WHEELS)"/cwm_core-*-$$($(PY) -c 'import sys; print("cp%d%d" % sys.version_info[:2])')-*.whl)
$(INSTALLED): | $(PY) $(TOOLS)/.uv
	wheel="$(WHEEL)[$(EXTRAS)]"; { [ -x $(UV) ] && $(UV) pip install --quiet --python $(PY) "$$wheel"; } || \
	  $(PY) -m pip install --quiet "$$wheel"
	touch $@
else
$(INSTALLED): $(VENV)/.maturin $(RUST) pyproject.toml | $(TOOLS)/.uv
	VIRTUAL_ENV="$(CURDIR)/$(VENV)" PATH="$(CURDIR)/$(TOOLS)/bin:$$PATH" \
	  $(PY) -m maturin develop --release --locked --extras $(EXTRAS) $$([ ! -x $(UV) ] || echo --uv)
	touch $@
endif

$(VENV)/.maturin: | $(PY)
	$(PY) -m pip install --quiet "$(MATURIN)"
	touch $@

$(TOOLS)/.uv: | $(TOOLS)/bin/python
	$(TOOLS)/bin/python -m pip install --quiet "uv>=0.9,<1" || echo "uv cannot be installed; pip takes its place" >&2
	touch $@

$(TOOLS)/.installed: | $(TOOLS)/bin/python
	$(TOOLS)/bin/python -m pip install --quiet "maturin[zig]$(MATURIN:maturin%=%)"
	touch $@

%/bin/python:
	@test -n "$(PYTHON)" || { echo "make: no CPython 3.11 to 3.15 with venv found: name one with PYTHON=" >&2; exit 1; }
	"$(PYTHON)" -m venv $*
