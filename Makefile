# make run    set up everything and run the workflow: the demo, or what config/config.yaml says
# make stop   end the workers that runs have left for the next one (worker_keep_minutes)
# make test   set up everything and run the tests
# make test-portable  the unit tests as on other processors, threads, locales and time zones; an hour
# make campaign  very many bad inputs, kills and damages, in some 30 minutes; prints a table
# make lint   the linters, as CI runs them
# make notebook  set up JupyterLab as well and start it on 127.0.0.1; it prints an address with a token
# make config  write config/config.yaml and config/README.md again from the schema
# make dry-runs  plan a run of every config that ships
# make pins   compile envs/*.txt and envs/*.yaml again from pyproject.toml
# make clean  take away the environment and the tools; results stay
#
# ARGS= goes to the program: make run ARGS=-n · make test ARGS="-m 'not slow'" · make pins ARGS=--upgrade
# PYTHON= names the Python to set up with, PROFILE= another profile, PINS= cpu or gpu, IP= where JupyterLab listens.

GPU := $(shell timeout 20 nvidia-smi -L 2>/dev/null | grep '^GPU ')
PINS ?= $(if $(GPU),gpu,cpu)
IP := 127.0.0.1
PROFILE := $(if $(GPU),spark,cpu)

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHON

.PHONY: run stop test test-long test-portable campaign lint config dry-runs notebook jupyter pins clean env

run: env
	snakemake --profile $(PROFILE) $(ARGS)
	@echo "The results lie in results/, a folder a dataset; README.md says what they are."

stop:
	@python3 -P scripts/scrna/engine/__main__.py

test: env
	pytest -n 2 --dist loadfile $(ARGS)

test-long: env
	SCRNA_TEST_LONG=1 pytest -n 2 --dist loadfile -m long $(ARGS)

test-portable: env
	python tests/portable.py $(ARGS)

campaign: env
	SCRNA_TEST_CAMPAIGN=1 SCRNA_TEST_LONG=1 pytest -n 2 --dist worksteal -m campaign tests/campaign tests/workflow/test_stale.py $(ARGS)

lint: env
	ruff check
	ruff format --check
	snakefmt --check Snakefile rules
	codespell
	snakemake --lint

config: env
	python scripts/scrna/config/reference.py

dry-runs: env
	python .ci/dry_runs.py $(ARGS)

notebook: jupyter
	jupyter lab --ip $(IP) --no-browser --LabApp.default_url=/lab/tree/docs/explore.ipynb $(ARGS)

# On top of .venv; where it is there already, uv sees that in a moment.
jupyter: env
	@"$$(envs/setup uv)" pip install --quiet --require-hashes --python .venv/bin/python --requirement envs/notebook.txt

pins: env
	python envs/compile.py "$$(envs/setup uv)" $(ARGS)

clean:
	rm -rf .venv .tools

env:
	@envs/setup $(PINS)
