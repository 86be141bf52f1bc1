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

gpu: $(STAMP)
	FASTTAG_REQUIRE_GPU=1 $(BIN)/pytest -m gpu

# one round of every benchmark: the result is checked, the timing is not kept
bench-smoke: $(STAMP)
	$(BIN)/pytest benchmarks --benchmark-only --benchmark-disable-gc --smoke -q

bench: $(STAMP) .venv-peers/.installed
	$(BIN)/pytest benchmarks --benchmark-only --benchmark-disable-gc --benchmark-json=benchmarks/results/latest.json

.venv-peers/.installed: benchmarks/peers-requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers-requirements.txt
	touch $@

clean:
	rm -rf $(VENV) .venv-peers build dist *.egg-info
