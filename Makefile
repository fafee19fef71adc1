# Every target sets up $(VENV) first where that is not done yet.
# PYTHON=python3.12 chooses the interpreter, PYTEST_ARGS="-k linen" some of the tests, NETWORK=resnet18 another network.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTHON ?=
PYTEST_ARGS ?=
NETWORK ?= resnet50
OUT ?= benchmarks/results
SEED ?= 0
FAULTS ?= $(VENV)/faults
PINS ?= constraints.txt
EXTRA ?= dev
TWINS := .venv-twins
PROSE := README.md CONTRIBUTING.md CHANGELOG.md benchmarks/README.md parity/SKILL.md docs

GPU_PYTHON = $(or $(PYTHON),python3)
define MISSING
import importlib.util, sys
absent = [name for name in sys.argv[2:] if importlib.util.find_spec(name) is None]
sys.exit(f"make: {sys.argv[1]} lacks {', '.join(absent)}; name a Python that has them: make gpu PYTHON=..." if absent else 0)
endef
export MISSING

.DEFAULT_GOAL := help
.PHONY: help setup setup-twins docs installed parity parity-all bench gpu gpu-rehearsal test test-nightly test-fast score twins twins-fast notebooks fuzz soak lint faithful clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## set up .venv with everything pinned in constraints.txt

# The last releases of transformers and diffusers with Flax classes are older than those of .venv.
setup-twins: ## set up .venv-twins with the pins of constraints-twins.txt
	@$(MAKE) --no-print-directory setup VENV=$(TWINS) PINS=constraints-twins.txt EXTRA=twins

parity: $(READY) ## check that ResNet-50 is the same in all three ports
	$(BIN)/parity check $(NETWORK)

parity-all: $(READY) ## check every named network
	$(BIN)/parity check --all

bench: $(READY) ## time resnet18 in every port, each proved equal first (within five minutes)
	$(BIN)/python -m benchmarks --quick

gpu: ## on an NVIDIA GPU, with the Python that has its frameworks (PYTHON=...): stages a and b in eight minutes (STAGE=c)
	@$(GPU_PYTHON) -c "$$MISSING" $(GPU_PYTHON) torch jax flax optax numpy ml_dtypes jaxtyping typer rich PIL psutil jinja2
	$(GPU_PYTHON) -m benchmarks.gpu --out $(OUT) $(if $(STAGE),--stage $(STAGE))

gpu-rehearsal: $(READY) ## the same stages on the CPU with small networks, within ten minutes (STAGE=a)
	$(BIN)/python -m benchmarks.gpu --rehearsal $(if $(STAGE),--stage $(STAGE))

test: $(READY) ## run the tests of a day, every call checked against its annotations (TYPES=0: none)
	$(BIN)/pytest -n 2 --dist worksteal $(PYTEST_ARGS)

test-nightly: $(READY) ## run all tests, including those that take minutes
	$(BIN)/pytest -n 2 --dist worksteal --nightly $(PYTEST_ARGS)

test-fast: $(READY) ## run the quick modules, in two minutes
	$(BIN)/pytest -n 2 --dist worksteal --fast $(PYTEST_ARGS)

score: $(READY) ## plant every known mistake and make 1000 faithful runs: an hour on two cores (WORKERS=2)
	$(BIN)/python -m tests.meta --all --workers $(or $(WORKERS),2) --json benchmarks/results/score-cpu.json

faithful: $(READY) ## make 10,000 faithful runs, or go on with them: hours (WORKERS=2, RUNS=400)
	$(BIN)/python -m tests.meta.pieces $(or $(RUNS),10000) --workers $(or $(WORKERS),2)

twins: setup-twins ## check every family of transformers and diffusers that has a Flax class, in .venv-twins: twenty minutes (STORE=1)
	$(TWINS)/bin/python -m tests.twins $(if $(STORE),--store)
	$(TWINS)/bin/pytest tests/test_twins.py -k published
	$(TWINS)/bin/pytest tests/test_examples.py -k twin

twins-fast: setup-twins ## the same with four of them, within three minutes
	$(TWINS)/bin/python -m tests.twins --fast
	$(TWINS)/bin/pytest tests/test_twins.py -k published

notebooks: $(READY) setup-twins ## run the examples that are notebooks, too, and write these with their outputs: three minutes
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[notebooks]'
	$(BIN)/python -m docs.generator.notebooks
	$(TWINS)/bin/python -m pip install -q -c constraints-twins.txt -e '.[notebooks]'
	$(TWINS)/bin/python -m docs.generator.notebooks twins

fuzz: $(READY) ## damaged files, killed writers, hostile names and random state dicts, for five minutes (MINUTES=...)
	$(BIN)/python -m tests.fuzz all --minutes $(or $(MINUTES),5) --workers 2 --seed $(SEED) --keep $(FAULTS)

soak: $(READY) ## the same for an hour
	$(BIN)/python -m tests.fuzz all --minutes $(or $(MINUTES),60) --workers 2 --seed $(SEED) --keep $(FAULTS)

installed: $(READY) ## build wheel and sdist into dist/, install the wheel into an empty environment, run README's commands
	$(BIN)/python -m tests.installed --out dist

docs: $(READY) ## build the documentation into site/, to be read without a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: $(READY) ## ruff check, ruff format --check, typos, proselint, pyright
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/typos
	$(BIN)/proselint --config .proselintrc.json check $(PROSE)
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

clean: ## remove .venv and .venv-twins
	rm -rf $(VENV) $(TWINS)

# While a set-up is under way the stamp is called .unfinished; one found at the start was interrupted, and is redone.
# Some systems' Python lacks the part of venv that installs pip: there the interpreter's own pip does it.
$(READY): pyproject.toml constraints.txt $(PINS)
	@set -eu; \
	if [ -e $(VENV)/.unfinished ]; then rm -rf $(VENV); fi; \
	mkdir -p $(VENV); \
	if [ -e $@ ]; then mv $@ $(VENV)/.unfinished; else : > $(VENV)/.unfinished; fi; \
	if ! $(BIN)/python -c "" 2> /dev/null; then \
	    python=; \
	    for candidate in $(if $(PYTHON),"$(PYTHON)",python3 python3.12 python3.11); do \
	        if "$$candidate" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2> /dev/null; then \
	            python=$$candidate; break; \
	        fi; \
	    done; \
	    if [ -z "$$python" ]; then \
	        rm -rf $(VENV); \
	        echo "make: $(or $(PYTHON),python3) is not Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11" >&2; \
	        exit 1; \
	    fi; \
	    if "$$python" -c "import ensurepip" 2> /dev/null; then \
	        "$$python" -m venv $(VENV); \
	    else \
	        "$$python" -m venv --without-pip $(VENV); \
	        "$$python" -m pip --python $(BIN)/python install -q pip; \
	    fi; \
	fi; \
	if [ -t 1 ]; then quiet=; else quiet=-q; fi; \
	echo "Setting up $(VENV) with $$($(BIN)/python --version)"; \
	$(BIN)/python -m pip install $$quiet -c constraints.txt torch; \
	$(BIN)/python -m pip install $$quiet -c $(PINS) -e '.[$(EXTRA)]'; \
	mv $(VENV)/.unfinished $@; \
	touch $@
