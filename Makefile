# Everything a developer does here. `make help` lists it.
PYTHON ?= python3.12
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Chains run in threads of their own: more threads inside them only get in each other's way
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
OFFLINE := HF_HUB_OFFLINE=1

.DEFAULT_GOAL := help
.PHONY: help setup demo test soak browser reports atlas ladder bench calibration docs site fuzz compat lint

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP)  ## make .venv and install bayesqid into it; again only when pyproject.toml or constraints.txt change

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) with its venv module is needed and was not found. Install Python 3.12 (pyenv install 3.12;" >&2; \
	  echo "apt install python3.12-venv; brew install python@3.12), or name another one: make setup PYTHON=/path/to/python" >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[measure,quantizers,numpyro,dev]'
	@touch $@

demo: setup  ## measure the bundled ladder, sample both posteriors, project to 1e14 tokens (6 minutes on 2 cores)
	@mkdir -p demo
	$(OFFLINE) $(BIN)/bayesqid measure -o demo/measurements.nc
	$(ONE_THREAD) $(BIN)/bayesqid sample demo/measurements.nc -o demo/posterior-tiny.nc
	$(ONE_THREAD) $(BIN)/bayesqid sample atlas demo/measurements.nc --model hierarchical -o demo/posterior.nc
	$(BIN)/bayesqid project demo/posterior.nc --tokens 1e14 -o demo/report

test: setup  ## run the tests, all but soak and browser; a process per core, four at most
	$(ONE_THREAD) $(BIN)/pytest -m 'not soak and not browser' --numprocesses auto --maxprocesses 4 --dist loadfile

soak: setup  ## run the long tests: kills at random moments, fuzzed input, calibration of the intervals
	@echo 'Long tests: measuring is killed and resumed, input is fuzzed, intervals are checked for calibration.'
	$(BIN)/pytest -m soak -v

browser: setup  ## run the tests that open the HTML report in a browser
	$(BIN)/pytest -m browser -v

reports: setup  ## render reports/ and the figure of README.md again from the posteriors that ship; nothing is sampled
	$(ONE_THREAD) $(BIN)/python reports/render.py
	$(ONE_THREAD) $(BIN)/python docs/make_headline.py

atlas: setup  ## rebuild the atlas, its datasheet and its figure from the collected tables
	$(BIN)/python data/clean.py
	$(ONE_THREAD) $(BIN)/python docs/make_atlas.py

ladder: setup  ## train both ladders again: the tiny one half an hour, the controlled one hours; finished runs are skipped
	$(BIN)/python models/tiny/corpus.py
	$(BIN)/python models/tiny/train.py
	$(ONE_THREAD) $(BIN)/python models/ladder/train.py
	$(BIN)/python data/make_ladder.py

# gptq_reference.py needs GPTQModel, which is not among our dependencies: it says how to run it. The others left out
# refit for hours, or are imported by those that do; each goes on where it was interrupted
HOURS := calibration recovery reference resumable honesty refit structure compare_laws landscape_contest landscape_claims
NOT_HERE := gptq_reference ray_sweep $(HOURS)
bench: setup  ## run the benchmarks that need nothing but bayesqid and take minutes
	@for file in $(filter-out $(NOT_HERE:%=benchmarks/%.py), $(wildcard benchmarks/*.py)); do echo "$$file"; $(BIN)/python "$$file" || exit 1; done
	$(BIN)/python docs/make_benchmarks.py

calibration: setup  ## simulate and refit: are the intervals calibrated? Hours; goes on where it was interrupted
	$(ONE_THREAD) $(BIN)/python benchmarks/calibration.py --jobs 2
	$(ONE_THREAD) $(BIN)/python benchmarks/calibration.py --report
	$(ONE_THREAD) $(BIN)/python benchmarks/recovery.py --jobs 2
	$(ONE_THREAD) $(BIN)/python benchmarks/recovery.py --report
	$(ONE_THREAD) $(BIN)/python benchmarks/reference.py

docs: setup  ## write docs/cli.md and the outputs shown in README.md and docs/ again
	$(BIN)/python docs/make_cli.py
	$(BIN)/python docs/make_outputs.py
	$(BIN)/python docs/make_tables.py
	$(BIN)/python docs/make_benchmarks.py
	$(BIN)/python docs/make_scaling.py

site: setup  ## the documentation as a site in site/; a dead link fails
	$(BIN)/mkdocs build

fuzz: setup  ## fuzz every parser, MINUTES=10 each, JOBS=1 at once
	$(BIN)/python -W ignore fuzz/run.py --minutes $(or $(MINUTES),10) --jobs $(or $(JOBS),1)
	$(BIN)/python docs/make_reliability.py

compat: setup  ## the base install on the lowest and the newest versions, Python 3.12 and 3.13
	compat/run.sh build/compat

lint: setup  ## ruff, import contracts, types
	$(BIN)/ruff check
	$(BIN)/lint-imports
	$(BIN)/pyright
