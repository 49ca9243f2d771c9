# Every target sets itself up: a virtual environment in .venv, made once and used again.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
DEMO_STAMP := .venv/installed_demo

.PHONY: demo test mutants standin standin-host lint docs perf gpu gpu-bundle static clean

# Of what the tests need the demo needs little. Its matrix products are small: further threads of NumPy's would only wait
# for work, which keeps cores busy.
demo: $(DEMO_STAMP)
	@echo "importing torch and Triton takes some seconds"
	@OPENBLAS_NUM_THREADS=1 $(BIN)/python -m lucid.examples.char_lm $(ARGS)

# A process for each core, of one thread each: threads of several processes would only wait for each other.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal $(ARGS)

# Plants faults one at a time in a copy of the repository, and runs the tests that should catch them; half an hour.
mutants: $(STAMP)
	$(BIN)/python -m tests.mutants $(ARGS)

# For development, where there is such a thing: a stand-in for a GPU, which executes what Triton compiles. SAMPLE: at most so
# many cases of a test function.
standin:
	@if [ -x ../shared/fakegpu/run ]; then SAMPLE=$${SAMPLE:-3} ../shared/fakegpu/run ptx -n 2 \
	  $(or $(ARGS),tests --ignore=tests/test_aot.py --ignore=tests/test_perf_static.py); \
	else echo "standin: skipped, ../shared/fakegpu is not there"; fi

# The same stand-in, whose launches compute nothing here: the host time of a call, compared with torch's in one run.
standin-host:
	@if [ -x ../shared/fakegpu/run ]; then ../shared/fakegpu/run compile -m perf overhead \
	  $(or $(ARGS),kl_div distillation softmax --providers ours,lucid.torch,torch); \
	else echo "standin-host: skipped, ../shared/fakegpu is not there"; fi

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The API reference, into build/docs.
docs: $(STAMP)
	$(BIN)/python -m pdoc --docformat numpy --no-show-source -o build/docs \
	  lucid lucid.torch lucid.typing lucid.examples.distributed '!lucid\.(ops|tensor|device|dtype)\b' '!lucid\.torch\.'
	@echo "docs: build/docs/lucid.html"

# Bytes, launches and machine code against the figures accepted in perf/results/predicted: no GPU is needed.
static: $(STAMP)
	$(BIN)/python -m perf traffic --check --providers ours,lucid.torch --shapes 7x1271,2x32000
	$(BIN)/python -m perf static --check
	$(BIN)/python -m perf report --check

# On a GPU: measures, draws and reports, within 10 minutes. Where the environment is there already: make perf STAMP= BIN=DIR
# A row that fails (exit code 1) is reported with the others, and fails the target in the end.
perf: $(STAMP)
	@failed=0; row() { [ $$? = 1 ] && failed=1; }; \
	gpu=$$($(BIN)/python -m perf.environment) && folder=perf/results/$$gpu && mkdir -p $$folder && \
	echo "perf: measuring on $$gpu, into $$folder" && \
	{ $(BIN)/python -m perf sweep --csv $$folder/sweep.csv $(ARGS) || row; } && \
	{ $(BIN)/python -m perf overhead --csv $$folder/overhead.csv || row; } && \
	$(BIN)/python -m perf plot $$folder/sweep.csv && \
	$(BIN)/python -m perf report && \
	exit $$failed

# On a bare machine with a GPU, its own torch and triton, and no network: everything that only a GPU shows, within 530 s.
gpu:
	$(PYTHON) -m perf.gpu $(ARGS)

# What such a machine lacks, into .gpu: wheels, and compiled kernels where a stand-in for a GPU is beside the checkout.
gpu-bundle: $(STAMP)
	$(BIN)/python -m perf.gpu.bundle $(ARGS)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	touch $(STAMP)

$(DEMO_STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[demo]'
	touch $(DEMO_STAMP)

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo_output
