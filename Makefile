# Two commands do everything on a fresh machine: `make train` and `make test`. Both set up .venv first if needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PPO_FAST_BUILD ?= auto
PARALLEL := -n auto --maxprocesses 4 --dist worksteal

.PHONY: train test test-full test-asan core bench lint clean

train: $(READY)  ## train Ant-v5, or what ARGS says: make train ARGS="--env Hopper-v5"
	$(BIN)/python -m ppo_fast.train $(ARGS)

test: core  ## the tests, every kernel backend required
	$(BIN)/python -m pytest tests -m "not slow" --require-backends=cpp,numba $(PARALLEL) $(ARGS)

test-full: core  ## the tests, those that train for minutes included
	$(BIN)/python -m pytest tests --require-backends=cpp,numba $(ARGS)

# The core with AddressSanitizer and UndefinedBehaviorSanitizer in a copy of the sources, so that the checkout keeps its own.
# No leak check, because Python leaks at its end; EnvPool frees what it got by new; freed memory in quarantine looks like
# growth, which is why the tests that watch the memory are left out.
ASAN := build/asan
test-asan: $(READY)  ## kernels, native actor and learner under the sanitizers (GCC or Clang, about 5 minutes)
	rm -rf $(ASAN) && mkdir -p $(ASAN) && cp -r ppo_fast csrc tests CMakeLists.txt setup.py pyproject.toml README.md $(ASAN)
	rm -f $(ASAN)/ppo_fast/_core*.so
	cd $(ASAN) && CMAKE_ARGS=-DPPO_FAST_SANITIZE=ON PPO_FAST_BUILD=require \
	    $(CURDIR)/$(BIN)/python setup.py -q build_ext --inplace
	cd $(ASAN) && LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0:alloc_dealloc_mismatch=0:quarantine_size_mb=1 \
	    $(CURDIR)/$(BIN)/python -m pytest tests/kernels tests/test_native_actor.py tests/test_native_actor_core.py \
	    tests/test_native_learner.py tests/test_native_threads.py tests/test_native_fuzz.py -k "not ten_thousand" $(ARGS)

# A set-up made before there was a compiler lacks the core, which the tests require.
core: $(READY)
	@$(BIN)/python -c "import ppo_fast._core" 2>/dev/null || \
	    PPO_FAST_BUILD=require $(BIN)/python -m pip install --no-deps -e .

bench: $(READY)  ## env steps per second and kernel timings
	$(BIN)/python -m pytest benchmarks $(ARGS)

lint: core  ## style and types, those of the compiled core against the core itself
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest ppo_fast._core --ignore-disjoint-bases --allowlist .ci/stubtest-allow.txt

# The compiled core is part of the installation, so a change of its sources installs again.
$(READY): pyproject.toml setup.py CMakeLists.txt constraints.txt $(wildcard csrc/*)
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	    { echo "Python 3.11 or newer is needed, $(PYTHON) is older: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install -c constraints.txt -e '.[test]'
	touch $(READY)

clean:
	rm -rf $(VENV) benchmarks/peers/.venvs build *.egg-info ppo_fast/_core*.so ppo_fast/_build_info.json
