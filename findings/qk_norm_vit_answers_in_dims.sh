#!/usr/bin/env bash
# vit-pytorch 1.26.14, torch 2.14.1, Python 3.11
#
# vit-pytorch's SimpleViT with QK norm takes `num_classes` and gives back `dim` columns, not classes.
#
# Its last module, called `linear_head`, is a LayerNorm over `dim`; `num_classes` is read by nothing. The forward pass,
# cross_entropy and argmax all run as long as `dim` is not below the number of classes, so a training loop reports
# losses and accuracies: a softmax over 64 places of which 10 are ever right. No setting of `num_classes` changes a
# shape or a parameter. The plain SimpleViT beside it gives (B, num_classes).
#
# Output seen:
#   plain    (2, 10), head Linear(64, 10)
#   qk norm  (2, 64), head LayerNorm((64,)), and with num_classes=1000 (2, 64), parameters equal: True
#   cross_entropy with 10 labels: no error; a loss near ln 64 = 4.16 rather than ln 10 = 2.30: True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet torch==2.14.1 vit-pytorch==1.26.14
env/bin/python -W ignore - <<'PY'
import math

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from vit_pytorch.simple_vit import SimpleViT
from vit_pytorch.simple_vit_with_qk_norm import SimpleViT as WithQKNorm

sizes = dict(image_size=32, patch_size=8, dim=64, depth=2, heads=2, mlp_dim=128)
torch.manual_seed(0)
images, labels = torch.randn(2, 3, 32, 32), torch.tensor([3, 9])
plain = SimpleViT(num_classes=10, **sizes)
print(f"plain    {tuple(plain(images).shape)}, head Linear({plain.linear_head.in_features}, {plain.linear_head.out_features})")
assert plain(images).shape == (2, 10)

ten, thousand = WithQKNorm(num_classes=10, **sizes), WithQKNorm(num_classes=1000, **sizes)
count = [sum(p.numel() for p in net.parameters()) for net in (ten, thousand)]
print(f"qk norm  {tuple(ten(images).shape)}, head LayerNorm({ten.linear_head.normalized_shape}), "
      f"and with num_classes=1000 {tuple(thousand(images).shape)}, parameters equal: {count[0] == count[1]}")
assert isinstance(ten.linear_head, nn.LayerNorm)
assert ten(images).shape == thousand(images).shape == (2, 64) and count[0] == count[1]

many = torch.randn(64, 3, 32, 32)
loss = cross_entropy(ten(many), torch.randint(10, (64,))).item()
near = abs(loss - math.log(64)) < abs(loss - math.log(10))
print(f"cross_entropy with 10 labels: no error; a loss near ln 64 = {math.log(64):.2f} rather than ln 10 = "
      f"{math.log(10):.2f}: {near}")
assert near
PY
