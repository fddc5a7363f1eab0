# Serving Lab. Two commands are all that is needed: `make run` and `make lab`; `make help` lists the rest.
PYTHON ?= python3
BIN := .venv/bin
STACK ?= auto
ARGS ?=
COURSE_RUN := tests/notebooks/test_course_run.py

.PHONY: help setup fetch run lab test test-fast lint notebooks new-lab prediction-sheet article binder-check archives modelled-errors modelled-throughput gpu-proof gpu-arguments lock workshop-check reference reliability site

help:           ## this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

setup:          ## .venv from the lock (CUDA stack where there is an NVIDIA GPU, CPU stack elsewhere)
	@$(PYTHON) setup/install.py --stack $(STACK)

fetch: setup    ## fetch the embedded models into the user's cache, and verify them
	@$(BIN)/labkit fetch

run: fetch      ## run every lab, then write report.html (options: make run ARGS="01_first_deployment --resume")
	@$(BIN)/labkit run $(ARGS)

lab: fetch      ## JupyterLab on your own copies of the notebooks, in workspace/ (PROFILE=cpu|gpu|FILE: other sizes)
	@$(BIN)/python -m labkit.runs.workspace $(if $(PROFILE),--profile $(PROFILE))
	@JUPYTER_PREFER_ENV_PATH=1 $(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 --ServerApp.root_dir=$(CURDIR)/workspace \
		--LabApp.default_url=/lab/tree/00_start_here.ipynb $(ARGS)

lint: setup     ## formatting, lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-fast: lint ## lint and the unit tests
	$(BIN)/pytest -n auto tests/unit

test: fetch lint ## everything: lint, types, unit, engine, notebook and browser tests
	$(BIN)/pytest -n auto -m "not engine and not browser"
	$(BIN)/pytest -n 2 --dist loadfile -m "engine and not browser" --ignore=$(COURSE_RUN)  # two: each takes a core, 3 GiB
	$(BIN)/pytest -n 2 --dist loadfile -m browser  # apart: Playwright keeps an event loop running
	$(BIN)/pytest $(COURSE_RUN)

notebooks: fetch ## execute the notebooks and store their outputs
	$(BIN)/python tools/notebooks.py

new-lab: setup  ## create a new lab from the template: make new-lab NAME=13_speculative_decoding
	@$(BIN)/python tools/new_lab.py $(NAME)

prediction-sheet: setup ## write docs/workshop/prediction-sheet.md from the notebooks
	$(BIN)/python -m tools.prediction_sheet

article: setup  ## write docs/article.md: the article's sections, the claims and the labs that test them
	$(BIN)/python tools/article.py

binder-check: setup ## test binder/ in a clean environment: run what needs no engine (without Docker)
	$(BIN)/python tools/binder.py

archives: fetch ## archive the TorchServe handlers, into build/archives
	$(BIN)/python tools/archives.py

workshop-check: ## check whether this machine is ready for a workshop (ARGS="--answer --save DIR", or ARGS="--summary DIR" for the room)
	@test -x $(BIN)/labkit || { echo "there is no $(BIN)/labkit: run make setup fetch first" >&2; exit 1; }
	@$(BIN)/labkit workshop-check $(ARGS)

reference: setup ## store a run as this machine's recorded results in data/reference: make reference RUN=runs/...
	@$(BIN)/python tools/reference.py $(RUN)

reliability: fetch ## run the course N times and count the runs that pass: make reliability N=10 OUT=runs/reliability
	@$(BIN)/python -m tools.reliability $(or $(N),10) $(or $(OUT),runs/reliability)

site: setup     ## build static pages of the course for any web host, in build/site
	@$(BIN)/python -m tools.site

gpu-proof:      ## check the course's assumptions about GPUs on a real one: JSON lines, ten minutes at most
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m tools.gpu_proof

gpu-arguments: setup ## check without a GPU that vLLM's CUDA build accepts the labs' arguments, and requirements/gpu.lock
	$(BIN)/python -m tools.gpu_arguments

modelled-errors: setup ## compare the modelled GPU with public measurements of real ones (ARGS=--write updates the table)
	$(BIN)/python -m tools.modelled_errors $(ARGS)

modelled-throughput: setup ## update the calculator's table of modelled replicas with `labkit simulate`: ten minutes
	$(BIN)/python -m tools.modelled_throughput

lock: setup     ## update the locks to the newest versions that pyproject.toml allows
	$(BIN)/python setup/lock.py
