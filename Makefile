PYTHON ?= python3
OFFLINE_STEPS ?= 10000
ONLINE_STEPS ?= 6000
export OMP_NUM_THREADS ?= 1

DEMO = --runs-dir runs-demo --eval-every 2000
READY = .venv/requirements.stamp
READY_DEV = .venv/requirements-dev.stamp

.PHONY: help demo test test-slow check
help:
	@echo "make demo    pretrain, train from scratch, finetune twice, plot: about 6 minutes, curves in runs-demo"
	@echo "make test    run the tests; make test-slow: those that take long, Ray among them"
	@echo "make check   formatting, lint, tests"
	@echo "Each makes .venv with \$$(PYTHON) = $(PYTHON) and installs requirements.txt first (tests: requirements-dev.txt)."

$(READY): requirements.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -r requirements.txt
	touch $@

$(READY_DEV): $(READY) requirements-dev.txt
	.venv/bin/python -m pip install --quiet -r requirements-dev.txt
	touch $@

demo: $(READY)
	rm -rf runs-demo
	.venv/bin/python offline_pretrain_sac.py $(DEMO) --offline-steps $(OFFLINE_STEPS)
	.venv/bin/python sac_scratch.py $(DEMO) --online-steps $(ONLINE_STEPS) --warmup-steps 1000
	.venv/bin/python online_finetune_sac.py $(DEMO) --online-steps $(ONLINE_STEPS)
	.venv/bin/python online_finetune_sac.py $(DEMO) --online-steps $(ONLINE_STEPS) --q-filter-percentile 25
	.venv/bin/python plot_curves.py runs-demo

test: $(READY_DEV)
	.venv/bin/python -m pytest -n 2

test-slow: $(READY_DEV)
	.venv/bin/python -m pip install --quiet -r requirements-ray.txt
	.venv/bin/python -m pytest -m slow

check: $(READY_DEV)
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/python -m pytest -n 2
