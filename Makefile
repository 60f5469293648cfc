# Every target makes what it needs: .venv from requirements.txt at the versions of constraints.txt.
#   make quickstart [SEED=0] [WORKDIR=runs/quickstart]   train and evaluate on a bare machine
#   make test | test-slow | lint | parity                what .ci/run calls
#   make test-full                                       what takes too long for it: before a release
#   make torture [KILLS=100] [SEED=0]                    kill a run again and again, count what differs
#   make bench                                           benchmarks/, beside TensorFlow and torch
# PYTHON=python3.12 chooses the interpreter of a .venv that is not there yet.
PYTHON ?= python3
WORKDIR ?= runs/quickstart
SEED ?= 0
KILLS ?= 100
# A test compiles on one core most of the time: one worker for each.
PYTEST := -n auto --dist worksteal
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help quickstart test test-slow test-full torture parity bench lint format clean

help:
	@sed -n '2,8s/^# *//p' Makefile

$(VENV)/.base: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) \
	  else "error: Python 3.11 to 3.13 is needed, $(PYTHON) is %d.%d; use make PYTHON=python3.12" % v)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	@touch $@

$(VENV)/.test: $(VENV)/.base pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]' -c constraints.txt
	@touch $@

quickstart: $(VENV)/.base
	$(BIN)/python -m imagenet_jax.main --config=configs/quickstart.py --workdir='$(WORKDIR)' --config.seed=$(SEED)
	$(BIN)/python -m imagenet_jax.eval --workdir='$(WORKDIR)'

test: $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST) -m 'not slow and not full and not parity'

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST) -m 'slow and not full and not parity'

test-full: $(VENV)/.parity $(VENV)/.targets
	$(BIN)/python -m pytest $(PYTEST) -m 'slow or full'

torture: $(VENV)/.test
	$(BIN)/python -m tests.torture.killing --kills=$(KILLS) --seed=$(SEED)

$(VENV)/.parity: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[parity]' -c constraints.txt
	@touch $@

parity: $(VENV)/.parity
	$(BIN)/python -m pytest $(PYTEST) -m 'parity and not full' tests/parity

$(VENV)/.bench: $(VENV)/.base pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]' -c constraints.txt
	@touch $@

# Compilers for accelerators, which need none.
$(VENV)/.targets: $(VENV)/.base pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[targets]' -c constraints.txt
	@touch $@

bench: $(VENV)/.bench $(VENV)/.targets
	$(BIN)/python -m benchmarks.input --cores=1
	$(BIN)/python -m benchmarks.input --cores=2
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.loop
	$(BIN)/python -m benchmarks.train_step --config=configs/resnet50.py --config.batch_size=16 --steps=2
	$(BIN)/python -m benchmarks.compile --config=configs/resnet50.py

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m imagenet_jax.publish --table --check
	$(BIN)/python -m docs.figures
	$(BIN)/shellcheck launch/*.sh launch/*.sbatch launch/kubernetes/*.sh benchmarks/*.sh
	@audit=$$(timeout 120 $(BIN)/pip-audit --disable-pip --no-deps --progress-spinner=off --timeout=15 \
	  -r constraints.txt 2>&1); code=$$?; \
	case "$$audit" in \
	  *'Found '*) echo "$$audit"; exit 1;; \
	  *'No known vulnerabilities found'*) echo "pip-audit: no known vulnerability;" \
	    "$$(echo "$$audit" | grep -c 'could not be audited') packages could not be audited";; \
	  *) echo "pip-audit: no answer (exit code $$code), nothing was audited";; \
	esac

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV)
