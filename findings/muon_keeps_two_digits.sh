#!/usr/bin/env bash
# torch 2.14.1, Python 3.11
#
# torch.optim.Muon gives a float64 matrix steps of about two digits, and says nothing.
#
# The direction is always computed in bfloat16, whatever the type of the parameter, on a CPU too. A matrix in float64 and
# its copy in float32 move alike to the last bit of bfloat16, and both are off from the same five rounds in float64. So a
# check of gradients or of equal runs "in double precision" checks nothing here; and on a processor without bfloat16
# instructions the step costs several times what the same products cost in float32.
#
# Output seen:
#   the step of a float64 matrix differs from five rounds in float64 by 1.5% of its norm; rounds in float32: 0.0001%
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet torch==2.14.1
env/bin/python -W ignore - <<'PY'
import torch

torch.manual_seed(0)
gradient = torch.randn(64, 64, dtype=torch.float64)


def rounds(G):
    X = G / G.norm()
    for _ in range(5):
        A = X @ X.T
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X


matrix = torch.nn.Parameter(torch.zeros(64, 64, dtype=torch.float64))
matrix.grad = gradient.clone()
torch.optim.Muon([matrix], lr=1.0, weight_decay=0.0).step()
right = rounds(gradient)
off = ((-matrix.detach() - right).norm() / right.norm()).item()
single = ((rounds(gradient.float()).double() - right).norm() / right.norm()).item()
print(f"the step of a float64 matrix differs from five rounds in float64 by {off:.1%} of its norm; "
      f"rounds in float32: {single:.4%}")
assert matrix.dtype == torch.float64 and 5e-4 < off < 0.05 and single < 1e-5
PY
