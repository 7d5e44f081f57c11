# Everything a contributor runs. Each target sets up the virtual environment first; nothing else has to be installed
# than Python 3.11 or later and make.
#
#   make serve MODEL=owner/name PORT=8080 ARGS='--instances 1'
#   make test TESTS=tests/cli ARGS='-k config'

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
VLLM := .venv-vllm
VLLM_INSTALLED := $(VLLM)/.installed
TESTS ?=
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup serve test test-vllm soak faults realfaults check docs audit bench bench-scheduling bench-disaggregation bench-scaling format constraints clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(INSTALLED) ## Make .venv with everything that serving and the tests need

# Again whenever what is to be installed has changed.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; say which with PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[engine,otel,ray,docs,test]'
	@touch $@

serve: setup ## Serve MODEL (default: the demo model) on PORT, with ARGS
	$(BIN)/hyperflexis serve $(MODEL) $(if $(PORT),--port $(PORT)) $(ARGS)

test: setup ## Run the tests (TESTS, ARGS and WORKERS narrow and widen)
	$(BIN)/pytest -n $(WORKERS) $(TESTS) $(ARGS)

# Of its own, for vLLM pins what the rest pins otherwise; 2.4 GiB.
$(VLLM_INSTALLED): pyproject.toml tests/vllm/requirements.txt tests/vllm/environment.py
	$(PYTHON) tests/vllm/environment.py $(VLLM)
	@touch $@

test-vllm: $(VLLM_INSTALLED) ## Run the tests that need vLLM, with real servers on the CPU, in .venv-vllm (about ten minutes from nothing)
	$(VLLM)/bin/pytest -m vllm $(or $(TESTS),tests/vllm) $(ARGS)

soak: setup ## Play the tests of moves and faults at random for longer, other worlds each time (SOAK times as many as the suite), and fuzz for an hour
	SOAK=$(or $(SOAK),20) $(BIN)/pytest -n $(WORKERS) -m soak $(TESTS) $(ARGS)

faults: setup ## Play worlds full of faults: COUNT of them (one), from SEED (0) on
	PYTHONPATH=tests $(BIN)/python -m faults $(or $(SEED),0) $(or $(COUNT),1) $(ARGS)

realfaults: setup ## Kill, stop, flood and starve a real server for a quarter of an hour (ARGS='--only kills') and write what clients noticed
	$(BIN)/python benchmarks/real_faults.py --json benchmarks/results/real_faults.json $(ARGS)

check: setup ## Check format, lint, types and the import arrows
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest tests/test_architecture.py

docs: setup ## Build the documentation site into build/site; a dead link or a page that is nowhere listed is an error
	rm -rf build/site
	$(BIN)/sphinx-build -q -W --keep-going -E -c docs/site -d build/doctrees . build/site

audit: ## Ask whether weaknesses are known of what constraints.txt pins
	$(PYTHON) scripts/audit_dependencies.py

bench: setup ## Run all benchmarks (about 40 minutes on an idle machine) into benchmarks/results
	for name in startup gateway_cost two_classes engine_step products sim_speed dispatch_cost parity transfer migration role_switch weights ray_nodes vllm_gateway journal; do $(BIN)/python benchmarks/$$name.py --json benchmarks/results/$$name.json || failed=1; done; exit $${failed:-0}

bench-scheduling: setup ## Compare all policies on all scenarios (hours; TRACES: their folder; ARGS=--quick: minutes) and write the page
	$(BIN)/python benchmarks/scheduling.py $(if $(TRACES),--traces $(TRACES)) $(ARGS)
	$(if $(findstring --quick,$(ARGS)),,$(BIN)/python benchmarks/bound.py $(if $(TRACES),--traces $(TRACES)) --capacity --json benchmarks/results/bound.json)
	$(if $(findstring --quick,$(ARGS)),,$(BIN)/python benchmarks/scheduling_page.py)

bench-disaggregation: setup ## Compare prefill and decode together and apart (hours; TRACES: their folder; ARGS=--quick: minutes) and write the page
	$(BIN)/python benchmarks/disaggregation.py $(if $(TRACES),--traces $(TRACES)) $(ARGS)

bench-scaling: setup ## Compare ways to scale (an hour of two cores; TRACES: their folder; ARGS=--quick: minutes) and write the page
	$(BIN)/python benchmarks/scaling.py $(if $(TRACES),--traces $(TRACES)) $(ARGS)

format: setup ## Format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

constraints: setup ## Pin in constraints.txt what .venv holds now
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed -e 's/+[^ ]*$$//' -e '/^nvidia-/d;/^cuda-/d;/^triton==/d'; } > constraints.txt.new
	mv constraints.txt.new constraints.txt
	@touch $(INSTALLED)

clean: ## Remove what is built and cached, .venv too
	rm -rf $(VENV) $(VLLM) build dist .coverage htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
