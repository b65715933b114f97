"""Run an exported policy with ONNX Runtime and Gymnasium alone: python examples/run_onnx.py policy.onnx [EPISODES].

Needs: pip install onnxruntime 'gymnasium[mujoco]'
"""

import json
import sys
from pathlib import Path

import gymnasium
import numpy as np
import onnxruntime

if len(sys.argv) < 2:
    sys.exit(__doc__)
path, episodes = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5
contract = json.loads(path.with_suffix(".contract.json").read_text())
policy = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
# An environment of your own is registered by importing its module above; the file does not choose what is imported.
env = gymnasium.make(contract["environment"]["id"].rpartition(":")[2], **contract["environment"]["kwargs"])
for episode in range(episodes):
    obs, _ = env.reset(seed=episode)
    total, ended = 0.0, False
    while not ended:
        (actions,) = policy.run(None, {"observation": np.asarray(obs, np.float32)[None]})  # a batch of one row
        obs, reward, terminated, truncated, _ = env.step(actions[0])
        total, ended = total + float(reward), terminated or truncated
    print(f"episode {episode}: return {total:.1f}")
