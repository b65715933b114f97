#!/usr/bin/env bash
# On a machine with a GPU, one command: builds the core, holds the GPU to the CPU, prints the table of benchmarks/README.md
# and keeps it, with a description of the machine, below benchmarks/results/. It is to take less than ten minutes.
#
#   benchmarks/gpu.sh                  with .venv/bin/python if it is there, else python3
#   PYTHON=/path/to/python benchmarks/gpu.sh
#
# Without a GPU that torch can use, or without what it needs, it says so in one line and ends before it does anything.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}

"$PYTHON" - <<'CHECK' || exit 1
import importlib.util, sys, warnings
warnings.simplefilter("ignore")
def stop(why):
    sys.exit(f"benchmarks/gpu.sh: {why}")
needed = ("torch", "numpy", "envpool", "gymnasium", "safetensors", "tyro", "pytest", "pytest_benchmark", "pytest_timeout",
          "hypothesis", "pybind11")
missing = [name for name in needed if importlib.util.find_spec(name) is None]
if "torch" in missing:
    stop(f"no torch in {sys.executable}")
import torch
try:
    torch.cuda.init()
    torch.ones(1, device="cuda") + 1
except (AssertionError, RuntimeError) as error:
    stop(f"torch cannot use a GPU here: {str(error).strip().splitlines()[0]}")
if missing:
    stop(f"there is a GPU, but no {', '.join(missing)} in {sys.executable}")
CHECK

say() { printf '\n=== %s (%s s so far)\n' "$*" "$SECONDS"; }

say "the core"
PPO_FAST_BUILD=require "$PYTHON" setup.py -q build_ext --inplace

say "what the GPU computes: graph against eager, resume, early stop, rates, first ratios, GAE"
"$PYTHON" -m pytest -q -rs -k cuda tests/test_graph_learner.py tests/test_first_ratio.py tests/kernels/test_device_gae.py

say "which learner this machine would take"
"$PYTHON" -m ppo_fast.info --calibrate
"$PYTHON" -m ppo_fast.info --calibrate --hidden-sizes 256 128 64 --minibatch-size 2048

say "speed"
"$PYTHON" -m pytest -q -s benchmarks/bench_gpu.py --save-results

say "done"
