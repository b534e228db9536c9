# Two commands are enough: `make demo` and `make test`. `make help` explains the rest.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
export TQDM_DISABLE = 1

.DEFAULT_GOAL := help
.PHONY: help demo test lab export readme nbs clean

help:    ## this list
	@grep -hE '^[a-z]+: .*##|^[a-z]+:  *##' Makefile | awk -F':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

$(VENV)/.installed: settings.ini setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.installed   ## train GENRE on a simulated Chinese shop and write genre-demo/report.html (3 minutes)
	$(BIN)/genre demo $(ARGS)

test: $(VENV)/.installed   ## all tests, the notebooks among them
	PYTHONWARNINGS=ignore OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --durations=15 tests $(ARGS)

lab: $(VENV)/.installed    ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir=nbs

export: $(VENV)/.installed ## notebooks to modules
	$(BIN)/nbdev_export

readme: $(VENV)/.installed ## README.md from nbs/index.ipynb
	$(BIN)/python .ci/readme.py

nbs: $(VENV)/.installed    ## run notebooks in place, keep outputs, clean (ARGS="nbs/00_losses.ipynb" for one)
	$(BIN)/python .ci/run_notebooks.py $(or $(ARGS),$(wildcard nbs/*.ipynb))

clean:   ## remove the environment and what was built
	rm -rf $(VENV) build *.egg-info genre-demo
