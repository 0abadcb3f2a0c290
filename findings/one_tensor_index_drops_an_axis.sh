#!/usr/bin/env bash
# NumPy 2.4.6 and torch 2.14.1, Python 3.11
#
# An ndarray indexed by a torch tensor of places keeps its axis for 0, 2, 3, ... places and loses it for exactly one.
#
# features[places] with places a (n,) int64 tensor gives (n, D), as with an ndarray or a list. For n = 1 it gives (D,):
# a tensor of one element has __index__, whatever its rank, and NumPy asks for that before it looks for a sequence. So
# code that is tested with several images fails, or broadcasts, on the one class that has a single image. torch's own
# indexing, and NumPy's by `places.numpy()`, keep the axis; even a (1, 1) tensor counts as one number.
#
# Output seen:
#   places 0: (0, 4)   1: (4,)   2: (2, 4)   3: (3, 4)
#   one place as ndarray (1, 4), as list (1, 4), torch's own (1, 4)
#   a (1, 1) tensor: (4,), as ndarray: (1, 1, 4)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet torch==2.14.1 numpy==2.4.6
env/bin/python -W ignore - <<'PY'
import numpy as np
import torch

features = np.arange(20.0).reshape(5, 4)
shapes = {n: features[torch.arange(n)].shape for n in range(4)}
print("places " + "   ".join(f"{n}: {shape}" for n, shape in shapes.items()))
assert shapes == {0: (0, 4), 1: (4,), 2: (2, 4), 3: (3, 4)}, "one place is treated as the others are now"
one = torch.tensor([2])
array, listed, own = features[one.numpy()].shape, features[one.tolist()].shape, torch.from_numpy(features)[one].shape
print(f"one place as ndarray {array}, as list {listed}, torch's own {tuple(own)}")
assert array == listed == tuple(own) == (1, 4)
square = torch.tensor([[2]])
print(f"a (1, 1) tensor: {features[square].shape}, as ndarray: {features[square.numpy()].shape}")
assert features[square].shape == (4,) and features[square.numpy()].shape == (1, 1, 4)
PY
