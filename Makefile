# make demo   the whole workflow on the embedded corpus
# make test   lint, types, tests
# make test-k2   lattice, losses and k2's search against k2, in an environment of its own
# make test-slurm   the workflow, its faults and several nodes on a SLURM that it starts and stops: as root, on Debian
# make test-gpu   what a GPU computes, against the CPU
# make study-an4   the paper's study on AN4 (hours; AN4_ROOT and WHISPER_BASE name its data; SYSTEMS="kd hard": only these)
# All make .venv first. VENV=/elsewhere puts it elsewhere; PYTHON=python3.12 makes it of another Python.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-k2 test-slurm test-gpu study-an4 lint lock clean

# Without bytecode every job of a workflow compiles Snakemake and torch anew, which takes longer than most jobs' work.
unexport PYTHONDONTWRITEBYTECODE

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := -m pip --disable-pip-version-check
READY := $(VENV)/.ready

help:
	@sed -n '1,7s/^# //p' Makefile

setup: $(READY)

$(READY): requirements/lock.txt pyproject.toml
	@echo "setting up $(VENV): about 5 GB, most of it torch"
	$(PYTHON) -m venv $(VENV)
	# The lock is closed, so there is nothing to resolve; bytecode is compiled at first use, of what is used.
	$(BIN)/python $(PIP) install -q --no-deps --no-compile -r requirements/lock.txt
	$(BIN)/python $(PIP) install -q --no-deps -e .
	touch $@

demo:
	@$(MAKE) --no-print-directory setup
	ready=$$SECONDS
	$(BIN)/snakemake
	echo
	cat results/report/table.txt
	echo
	echo "report: $(CURDIR)/results/report/index.html"
	echo "set-up $${ready} s, run $$((SECONDS - ready)) s"

test: lint
	$(BIN)/python -m pytest -q

# Lattice, losses and search against real k2, in an environment of its own (4 GB): k2 of the registry wants an old torch.
K2_VENV ?= .venv-k2
K2_PYTHON ?= python3.11
K2_PIP := $(K2_VENV)/bin/python $(PIP) install -q --no-deps --no-compile
test-k2: $(K2_VENV)/.ready
	PYTHONDONTWRITEBYTECODE=1 $(K2_VENV)/bin/python -m pytest -q -p no:cacheprovider tests/k2

$(K2_VENV)/.ready: envs/k2-registry.txt envs/k2-wheel.txt
	$(K2_PYTHON) -m venv $(K2_VENV)
	$(K2_PIP) -r envs/k2-registry.txt
	$(K2_PIP) -r envs/k2-wheel.txt
	touch $@

# Where no SLURM can be started it says NOT RUN and fails. KDTRANS_FAULTS=2 breaks less than ten of each kind.
test-slurm: $(READY)
	KDTRANS_SLURM=1 $(BIN)/python -m pytest -q -s tests/slurm

# Where there is no GPU, what needs one is skipped.
test-gpu: $(READY)
	KDTRANS_GPU=1 $(BIN)/python -m pytest -q tests/gpu tests/unit/lattice/test_kernel.py tests/unit/data/test_batches.py

# Resumes where it was stopped; the page shows what is finished.
STUDY := --configfile workflow/configs/an4.yaml workflow/configs/an4-study.yaml
STUDY_LOW := $(STUDY) workflow/configs/an4-study-low.yaml
FINISHED := --config 'report={finished_only: true}'
study-an4: $(READY)
	$(BIN)/snakemake $(or $(SYSTEMS),score) $(STUDY)
	$(BIN)/snakemake report $(STUDY) $(FINISHED)
	$(BIN)/snakemake $(or $(SYSTEMS),baseline hard kd_unlabelled) $(STUDY_LOW)
	$(BIN)/snakemake report $(STUDY_LOW) $(FINISHED)
	$(BIN)/kdtrans study --summaries main=results-study/main/report/summary.json \
	  low=results-study/low/report/summary.json --out docs/study-an4

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/snakemake --lint
	$(BIN)/snakefmt --check Snakefile workflow

# The newest versions that pyproject.toml allows, in an environment of their own.
lock:
	scratch=$$(mktemp -d)
	trap 'rm -rf "$$scratch"' EXIT
	$(PYTHON) -m venv $$scratch
	$$scratch/bin/python $(PIP) install -q '.[demo,slurm,test,docs]'
	$$scratch/bin/python $(PIP) freeze --exclude kdtrans > $$scratch/lock.txt
	mv $$scratch/lock.txt requirements/lock.txt

# What the demo and the tests made; the environment stays.
clean:
	rm -rf results .snakemake .pytest_cache .mypy_cache .ruff_cache .hypothesis build
