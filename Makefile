# Everything below sets itself up: `make demo` and `make test` work on a fresh machine with Python 3.10+.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ZOO := $(or $(BACKSWEEP_HOME),$(HOME)/.cache/backsweep)/zoo
export BACKSWEEP_DATA ?= $(abspath ../shared/data)
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test lint fuzz results small-sets mntd docs release version clean
help:            ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

demo: $(VENV)/.run   ## train a clean and a backdoored net on real digits, scan both, repair one
	$(BIN)/backsweep demo --out demo-report

test: $(VENV)/.dev lint   ## ruff, strict typing, all tests
	@if [ -n "$$CI" ] && command -v apt-get >/dev/null; then \
	  missing="$$(command -v chromium >/dev/null || echo chromium; command -v firefox >/dev/null || echo firefox-esr; \
	    [ -d /usr/lib/postgresql ] || echo postgresql)"; install="apt-get install -y -qq --no-install-recommends"; \
	  if [ -n "$$missing" ] && apt-get update -qq; then \
	    $$install $$missing >/dev/null || for one in $$missing; do $$install $$one >/dev/null; done; fi; fi || true
	@if [ -n "$$CI" ]; then $(PYTHON) -m venv $(VENV)/mlflow && $(VENV)/mlflow/bin/pip install -q mlflow; fi || true
	BACKSWEEP_MLFLOW=$(abspath $(VENV)/mlflow/bin/python) $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

fuzz: $(VENV)/.dev   ## 20,000 bad files over all readers; what is not refused in one line or read fails
	$(BIN)/python tests/fuzz.py --count 20000

results: $(VENV)/.dev   ## train the standard zoo, scan it, remake docs/results (many hours; can be stopped at any time)
	$(BIN)/backsweep zoo build plans/calibration.toml --workers 2
	$(BIN)/backsweep bench run plans/calibration.toml --out docs/results/calibration.jsonl --workers 2
	$(BIN)/backsweep bench null docs/results/calibration.jsonl --out src/backsweep/scanning/nulls/zoo.json
	for task in mnist gtsrb cifar10; do \
	  $(BIN)/backsweep zoo build plans/standard-$$task.toml --workers 2 && \
	  $(BIN)/backsweep bench run plans/standard-$$task.toml --out docs/results/standard.jsonl --workers 2 || exit 1; \
	done
	$(BIN)/backsweep bench table docs/results/standard.jsonl --out docs/results/standard.md
	$(BIN)/backsweep zoo build plans/kinds.toml --workers 2
	$(BIN)/backsweep bench run plans/kinds.toml --out docs/results/kinds.jsonl --workers 2
	$(BIN)/backsweep bench population docs/results/kinds.jsonl --out src/backsweep/scanning/cascade/populations/images.json
	$(BIN)/backsweep bench kinds docs/results/kinds.jsonl --out docs/results/kinds.md
	$(BIN)/backsweep zoo build plans/neural-cleanse.toml --workers 2
	$(BIN)/backsweep bench run plans/neural-cleanse.toml --out docs/results/neural-cleanse.jsonl
	$(BIN)/backsweep bench table docs/results/neural-cleanse.jsonl --out docs/results/neural-cleanse.md
	for plan in repairs repairs-colour; do \
	  $(BIN)/backsweep zoo build plans/$$plan.toml --workers 2 && \
	  $(BIN)/backsweep bench run plans/$$plan.toml --out docs/results/repairs.jsonl --workers 2 || exit 1; \
	done
	$(BIN)/backsweep bench table docs/results/repairs.jsonl --out docs/results/repairs.md
	$(BIN)/backsweep bench run plans/repairs-kinds.toml --out docs/results/repairs-kinds.jsonl --workers 2
	$(BIN)/backsweep bench table docs/results/repairs-kinds.jsonl --out docs/results/repairs-kinds.md
	$(BIN)/backsweep zoo build plans/repairs-tuned.toml --workers 2
	$(BIN)/backsweep bench run plans/repairs-tuned.toml --out docs/results/repairs-tuned.jsonl --workers 2
	$(BIN)/backsweep bench table docs/results/repairs-tuned.jsonl --out docs/results/repairs-tuned.md
	$(BIN)/backsweep zoo build plans/audit-calibration.toml --workers 2
	$(BIN)/backsweep bench run plans/audit-calibration.toml --out docs/results/audit-calibration.jsonl --workers 2
	$(BIN)/backsweep bench null docs/results/audit-calibration.jsonl --out src/backsweep/auditing/unpoisoned/audits.json
	for plan in audits guards; do \
	  $(BIN)/backsweep zoo build plans/$$plan.toml --workers 2 && \
	  $(BIN)/backsweep bench run plans/$$plan.toml --out docs/results/$$plan.jsonl --workers 2 && \
	  $(BIN)/backsweep bench table docs/results/$$plan.jsonl --out docs/results/$$plan.md || exit 1; \
	done

small-sets: $(VENV)/.dev   ## audits of small sets from the beginning: null tables and docs/results/small-sets.md (half an hour; can be stopped)
	for kind in digits mnist; do \
	  run="$(BIN)/python benchmarks/audit_sets.py run docs/results/small-sets.jsonl --kind $$kind"; \
	  $$run --seeds 1000-1039 && $$run --seeds 200-219 && \
	  $$run --seeds 200-209 --attack badnets && $$run --seeds 200-209 --attack blended || exit 1; \
	done
	$(BIN)/python benchmarks/audit_sets.py null docs/results/small-sets.jsonl --out src/backsweep/auditing/unpoisoned/small.json
	$(BIN)/python benchmarks/audit_sets.py judge docs/results/small-sets.jsonl --out docs/results/small-sets.md

mntd: $(VENV)/.dev   ## banks of shadow networks, and docs/results/mntd* (three hours on two cores)
	mkdir -p banks
	$(BIN)/backsweep zoo build plans/mntd-calibration.toml --workers 2
	$(BIN)/backsweep bank build banks/mnist.bank --task mnist --shadows 320 --workers 2
	$(BIN)/backsweep bank build banks/cifar.bank --task cifar10 --arch gap_cnn --shadows 120 --workers 2
	for bank in known mnist-paper; do \
	  cp banks/mnist.bank banks/$$bank.bank && ln -sfn mnist.bank.shadows banks/$$bank.bank.shadows || exit 1; \
	done
	$(BIN)/backsweep bank tune banks/known.bank --variant jumbo --variant robust --seed 1
	$(BIN)/backsweep bank tune banks/mnist-paper.bank --paper --seed 2
	$(BIN)/backsweep bank tune banks/mnist.bank --shadows 16 --shadows 32 --shadows 64 --shadows 128 --seed 3
	$(BIN)/backsweep bank tune banks/cifar.bank --shadows 16 --shadows 32 --shadows 64 --seed 3
	for bank in mnist mnist-paper; do \
	  $(BIN)/backsweep bank calibrate banks/$$bank.bank --arch mnist_cnn $(ZOO)/mnist-clean-*-s10[0-9][0-9]/model.safetensors || exit 1; \
	done
	$(BIN)/backsweep bank calibrate banks/cifar.bank --arch gap_cnn $(ZOO)/cifar10-gap_cnn-clean-*-s10[0-9][0-9]/model.safetensors
	for plan in mnist unseen evading cifar10; do \
	  $(BIN)/backsweep zoo build plans/mntd-$$plan.toml --workers 2 && \
	  $(BIN)/backsweep bench run plans/mntd-$$plan.toml --out docs/results/mntd.jsonl --workers 2 || exit 1; \
	done
	$(BIN)/backsweep bench run plans/mntd-curve.toml --out docs/results/mntd-curve.jsonl --workers 2
	$(BIN)/backsweep bench table docs/results/mntd.jsonl --out docs/results/mntd.md
	$(BIN)/python benchmarks/mntd_curve.py docs/results/mntd.jsonl docs/results/mntd-curve.jsonl --out docs/images/mntd-curve.svg

# PyTorch from PyPI brings CUDA, gigabytes that only an NVIDIA GPU has use for: without one the CPU build is taken, where its index
# can be reached. Nothing is compiled beforehand: most of PyTorch is never imported.
TORCH_CPU ?= https://download.pytorch.org/whl/cpu
PIP = $(BIN)/python -m pip install -q --no-compile
define set-up
@echo "Setting up $(VENV): PyTorch is large, this can take a minute or more."
$(PYTHON) -m venv $(VENV)
@command -v nvidia-smi >/dev/null || $(PIP) --no-deps --retries 1 --timeout 10 --index-url $(TORCH_CPU) \
  "$$(sed -n 's/^ *"\(torch>.*\)",$$/\1/p' pyproject.toml)" 2>/dev/null || true
endef

$(VENV)/.run: pyproject.toml
	$(set-up)
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml
	$(set-up)
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) demo-report .mypy_cache .ruff_cache .pytest_cache

docs: $(VENV)/.dev   ## the documentation as a site in build/site; a warning is an error
	$(BIN)/mkdocs build --strict -q

release: $(VENV)/.dev docs   ## wheel and sdist in dist/, checked; the demo from the wheel alone in every Python that is here
	rm -rf dist
	$(BIN)/python -m pip install -q build twine
	$(BIN)/python -m build -q
	$(BIN)/python -m twine check --strict dist/*
	@for version in 3.10 3.11 3.12 3.13; do \
	  python$$version --version >/dev/null 2>&1 || { echo "python$$version is not here"; continue; }; \
	  place=$$(mktemp -d) && python$$version -m venv $$place/venv && \
	  $$place/venv/bin/pip install -q dist/*.whl && (cd $$place && venv/bin/backsweep demo --out demo >demo.txt 2>&1 || { cat demo.txt; exit 1; }) && \
	  echo "python$$version: installed, demo passed" && rm -rf $$place || exit 1; \
	done

version: $(VENV)/.dev   ## VERSION=0.2.0: the version and the heading of the changelog, in one step
	$(BIN)/hatchling version --force "$(VERSION)"
	sed -i.old "s/^## \[.*\] – unreleased$$/## [$(VERSION)] – $$(date +%F)/" CHANGELOG.md && rm CHANGELOG.md.old
