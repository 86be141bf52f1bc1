# run: environment, install, demo.  test: everything but soak.  See README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run test quick soak bench bench-smoke gpu lint clean

run: $(STAMP)
	$(BIN)/fasttag demo --out fasttag-demo

$(STAMP): pyproject.toml setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[torch,train,plot,test]"
	touch $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(STAMP)
	$(BIN)/pytest -m "not soak"
	$(MAKE) bench-smoke

quick: $(STAMP)
	$(BIN)/pytest -m "not soak and not slow"

soak: $(STAMP)
	$(BIN)/pytest -m soak

# on a machine with a GPU, in at most 8 minutes: tests, benchmarks into benchmarks/results/<gpu>.md, memory and race checks.
# Where the packages are there and no index is: make gpu GPU_PYTHON=python3
GPU_PYTHON ?= $(BIN)/python
gpu: export FASTTAG_REQUIRE_GPU = 1
gpu: export PYTHONPATH = $(CURDIR):$(CURDIR)/kernels
gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(STAMP))
	$(GPU_PYTHON) -m pytest -q -m gpu tests/test_gpu.py tests/test_transfer.py
	$(GPU_PYTHON) -m pytest benchmarks -q -m gpu --benchmark-only --benchmark-quiet --save
	command -v compute-sanitizer || { echo "compute-sanitizer is not on the PATH: memory and races not checked"; exit 1; }
	for tool in memcheck racecheck; do \
		compute-sanitizer --tool $$tool --report-api-errors no --error-exitcode 9 $(GPU_PYTHON) tests/without_pool.py \
			-q -m gpu tests/test_gpu.py -k "oracle and cupy and float32 and (mixed or above or duplicates) or gradients" \
			|| exit; \
	done

# one round of every benchmark on a small problem: the results are checked, the timings not kept
bench-smoke: $(STAMP)
	$(BIN)/pytest benchmarks --benchmark-only --benchmark-disable-gc --benchmark-quiet --smoke -q

# writes benchmarks/results/<machine>.json and the tables of README.md
bench: $(STAMP) .venv-peers/.installed .venv-core/.installed
	$(BIN)/pytest benchmarks --benchmark-only --benchmark-disable-gc --benchmark-quiet --save
	$(BIN)/python benchmarks/render.py > /dev/null

.venv-peers/.installed: benchmarks/peers-requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/peers-requirements.txt
	touch $@

# only what the core needs, to time a cold start
.venv-core/.installed: pyproject.toml setup.cfg constraints.txt
	$(PYTHON) -m venv .venv-core
	.venv-core/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

clean:
	rm -rf $(VENV) .venv-peers .venv-core build dist *.egg-info
