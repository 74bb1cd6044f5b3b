# The project's commands. Each makes its own environment when there is none.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test check format test-datasets3 test-pythons test-s3 \
	bench-pack bench-load bench-stream bench-scale bench-order bench-pk bench-startup bench-eval bench-rerank bench-hub \
	bench-train

help: ## Show the commands
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

$(STAMP): pyproject.toml constraints.txt
	@echo "installing into $(VENV): some minutes, about 2.3 GB with torch and the tools"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

setup: $(STAMP) ## Install the package and its tools into .venv

demo: $(STAMP) ## Draw people, pack, verify, load, stream, score: the whole way, in demo/
	$(BIN)/entire-id demo demo

test: $(STAMP) ## Run the tests
	$(BIN)/python -m pytest -n 2

check: $(STAMP) ## Look at style, types and layers; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Let ruff put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-datasets3: $(STAMP) ## Load packed folders and raw crops with datasets 3.6.0, in an environment of its own
	$(BIN)/python tests/datasets3/run.py

test-pythons: $(STAMP) ## Run the tests that need no torch under other Pythons, where these are installed
	$(BIN)/python tests/pythons/run.py

test-s3: $(STAMP) ## Pack from and to an S3 server on loopback, in an environment of its own
	$(BIN)/python tests/s3/run.py

.venv-rivals/.installed: benchmarks/rivals.txt
	$(PYTHON) -m venv .venv-rivals
	.venv-rivals/bin/pip install --quiet --disable-pip-version-check --requirement benchmarks/rivals.txt
	touch $@

.venv-rivals-streams/.installed: benchmarks/rivals_streams.txt
	$(PYTHON) -m venv .venv-rivals-streams
	.venv-rivals-streams/bin/pip install --quiet --disable-pip-version-check --requirement benchmarks/rivals_streams.txt
	touch $@

bench-pack: $(STAMP) .venv-rivals/.installed ## Pack 200,000 crops beside other systems; needs 7 GB in WORK (default: build/)
	$(BIN)/python benchmarks/pack.py $(or $(WORK),build)/bench-pack

bench-load: $(STAMP) .venv-rivals/.installed .venv-rivals-streams/.installed ## Load 20,000 crops beside other systems; needs 2 GB in WORK (default: build/)
	$(BIN)/python benchmarks/load.py $(or $(WORK),build)/bench-load

bench-scale: $(STAMP) ## Pack 4,450,000 crops, killed half-way; needs 66 GB in WORK (default: build/) and an hour
	$(BIN)/python benchmarks/scale.py $(or $(WORK),build)/bench-scale

bench-rerank: $(STAMP) ## Re-rank beside the dense original; needs 14 GB of memory
	$(BIN)/python benchmarks/rerank.py $(or $(WORK),build)/bench-rerank

bench-order: $(STAMP) ## Measure the order of rows: batches, streams, bytes of an edit; needs 4 GB in WORK, 15 minutes
	$(BIN)/python benchmarks/order.py $(or $(WORK),build)/bench-order

bench-stream: $(STAMP) ## Stream 20,000 crops from a slow web server on loopback; needs 0.5 GB in WORK (default: build/)
	$(BIN)/python benchmarks/stream.py $(or $(WORK),build)/bench-stream

bench-pk: $(STAMP) ## Draw identity batches of 4.4 M crops by number: how well they mix people, what they cost
	$(BIN)/python benchmarks/pk.py

bench-startup: $(STAMP) ## Time from opening 4,450,000 crops to their first batch; shards are holes in WORK (default: build/)
	$(BIN)/python benchmarks/startup.py $(or $(WORK),build)/bench-startup

bench-hub: $(STAMP) ## Publish versions of 255,000 crops to a Hub on loopback, and read them; needs 12 GB in WORK (default: build/)
	$(BIN)/python benchmarks/hub.py $(or $(WORK),build)/bench-hub

bench-train: $(STAMP) ## Train the tiny network on 3,000 drawn crops and score it on the way; needs 0.1 GB in WORK (default: build/), minutes
	$(BIN)/python benchmarks/train.py $(or $(WORK),build)/bench-train

bench-eval: $(STAMP) .venv-rivals/.installed ## Score up to 5,000 × 300,000 features beside other tools; needs 2 GB in WORK (default: build/)
	$(BIN)/python benchmarks/evaluation.py $(or $(WORK),build)/bench-eval
