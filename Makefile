# From a fresh clone to a trained network, a tested library or a benchmark: every target sets up what it needs
# in .venv, once, and goes straight to work when nothing changed. `make` alone lists the targets.

# What to say on the command line, as in `make demo EPOCHS=3`; ARGS goes to pytest and scratchnn as it is.
PYTHON ?= python3
DATA   ?= auto
MODEL  ?= resnet20
EPOCHS ?= 10
ifndef OUT
OUT    := runs/demo-$(shell date +%Y%m%d-%H%M%S)
endif

BIN     := .venv/bin
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')
LAYER_TESTS := $(filter-out %_convert.py %_converted_models.py,$(wildcard $(addprefix tests/test_,conv*.py pool*.py *norm*.py linear*.py \
                 activation*.py)))

# What the build itself needs; one pip call, so that torch and torchvision come as a matching pair. The versions of
# torch are those the tests have passed on; TORCH='torch==2.14.1' takes another.
TORCH ?= torch>=2.13,<2.16
BUILD_REQUIREMENTS := 'setuptools>=77' wheel ninja numpy '$(TORCH)' torchvision

say  = @echo "scratchnn: $(1)"
fail = { echo "scratchnn: $(1)" >&2; exit 1; }

.PHONY: help demo notebooks rerun-notebooks docs test test-slow test-notebooks lint format bench clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:
	@echo "make demo       train a network and draw its curves: DATA=auto|digits|cifar10|FOLDER|ARCHIVE"
	@echo "                MODEL=resnet20 EPOCHS=$(EPOCHS) OUT=FOLDER (default: a new one under runs/)"
	@echo "make notebooks  open the notebooks in Jupyter: DATA as above, ARGS goes to jupyter lab"
	@echo "make rerun-notebooks"
	@echo "                run them and store what they put out: DATA as above, ARGS='05 07': some of them"
	@echo "make docs       build the documentation: site/index.html"
	@echo "make test       every test, then the layers again on the kernels for any processor; ARGS='-k conv': some"
	@echo "make test-slow  the tests that take minutes"
	@echo "make test-notebooks"
	@echo "                run every notebook from top to bottom"
	@echo "make lint       check formatting and style of Python and C++"
	@echo "make format     repair what can be repaired of that"
	@echo "make bench      time every layer beside torch's own; ARGS='--family conv --threads 1'"
	@echo "make clean      delete what was built; the environment in .venv stays (delete it by hand)"

demo: .venv/.built
	$(call say,training $(MODEL) on $(DATA) for $(EPOCHS) epochs)
	@$(BIN)/python -m scratchnn train --data "$(DATA)" --model "$(MODEL)" --epochs "$(EPOCHS)" --out "$(OUT)" $(ARGS)
	$(call say,the curves are in $(OUT)/curves.png)

notebooks: .venv/.notebooks
	$(call say,opening the notebooks; Ctrl-C twice ends Jupyter)
	@DATA="$(DATA)" $(BIN)/python -m jupyterlab notebooks $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS)

rerun-notebooks: .venv/.notebooks
	@DATA="$(DATA)" $(BIN)/python notebooks/rerun.py $(ARGS)

docs: .venv/.docs
	$(call say,building the documentation)
	@rm -rf site
	@$(BIN)/python -m sphinx -q -E -W --keep-going -d build/docs docs site $(ARGS)
	$(call say,the documentation is in site/index.html)

test: .venv/.built
	$(call say,testing $(if $(ARGS),with $(ARGS),everything))
	@$(BIN)/python -m pytest -q --durations=10 -m "not slow" $(ARGS)
ifndef ARGS
	$(call say,testing the layers again on the kernels for any processor)
	@ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest -q -m "not slow" $(LAYER_TESTS)
endif

test-slow: .venv/.built
	$(call say,running the slow tests)
	@$(BIN)/python -m pytest -q --durations=10 -m slow $(ARGS)

test-notebooks: .venv/.notebooks
	$(call say,running the notebooks)
	@$(BIN)/python -m pytest -q --durations=10 -m "slow or not slow" tests/test_notebooks.py $(ARGS)

lint: .venv/.lint
	$(call say,checking formatting and style)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/clang-format --dry-run -Werror $(SOURCES)

format: .venv/.lint
	$(call say,formatting)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .
	@$(BIN)/clang-format -i $(SOURCES)

bench: .venv/.built
	@$(BIN)/python -m scratchnn bench $(ARGS)

clean:
	$(call say,deleting what was built)
	@rm -rf build dist site scratchnn/*.so *.egg-info .pytest_cache .ruff_cache .venv/.built
	@find scratchnn tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps below stand for the steps of the set-up. Each names the files after whose change it is done again.

.venv/.python:
	@command -v $(PYTHON) >/dev/null || \
	  $(call fail,$(PYTHON) was not found; install Python 3.10 or newer or name one with PYTHON=...)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  $(call fail,$(PYTHON) is too old; install Python 3.10 or newer or name one with PYTHON=...)
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  $(call fail,$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv)
	$(call say,making the environment .venv)
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.lint: pyproject.toml | .venv/.python
	$(call say,installing ruff and clang-format)
	@$(BIN)/python -m pip install -qq $$(sed -n 's/^lint = \[\(.*\)\]$$/\1/p' pyproject.toml | tr -d '",')
	@touch $@

.venv/.notebooks: pyproject.toml .venv/.built
	$(call say,installing Jupyter)
	@$(BIN)/python -m pip install -qq $$(sed -n 's/^notebooks = \[\(.*\)\]$$/\1/p' pyproject.toml | tr -d '",')
	@touch $@

.venv/.docs: pyproject.toml .venv/.built
	$(call say,installing Sphinx)
	@$(BIN)/python -m pip install -qq $$(sed -n 's/^docs = \[\(.*\)\]$$/\1/p' pyproject.toml | tr -d '",')
	@touch $@

.venv/.torch: | .venv/.python
	@command -v $${CXX:-c++} >/dev/null || \
	  $(call fail,no C++ compiler was found; install gcc 12 or newer (on Debian and Ubuntu: apt install g++) or point CXX at one)
	@$(BIN)/python -c 'import sys, sysconfig, pathlib; sys.exit(not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").exists())' || \
	  $(call fail,the header Python.h was not found; on Debian and Ubuntu: apt install python3-dev)
	$(call say,installing torch and what the build needs (a large download the first time))
	@$(BIN)/python -m pip install -qq $(BUILD_REQUIREMENTS)
	@touch $@

# Installing compiles as well; after a change of the kernels alone, compiling what changed is enough.
INSTALL = $(BIN)/python -m pip install -qq --no-build-isolation -e '.[train,test]'
COMPILE = mkdir -p build && $(BIN)/python setup.py -q build_ext --inplace >build/log.txt 2>&1 \
  || { cat build/log.txt >&2; $(call fail,the kernels did not compile); }

.venv/.built: pyproject.toml setup.py .venv/.torch $(SOURCES)
	$(call say,$(if $(filter-out $(SOURCES),$?),installing scratchnn and compiling its kernels (minutes the first time),compiling the kernels that changed))
	@$(if $(filter-out $(SOURCES),$?),$(INSTALL),$(COMPILE))
	@touch $@
