#!/usr/bin/env bash
# vit-pytorch 1.26.14, torch 2.14.1, Python 3.11
#
# JumboViT multiplies both of its hidden widths by the width of its tokens once more than their names say.
#
# mlp_dim is no width of the MLP, as in ViT and SimpleViT, but a factor: a call that is right for SimpleViT is taken
# without a word and builds hidden layers dim times as wide. jumbo_ff_mult, "expansion factor", is multiplied by the
# class token's width before and again inside: the default of 2 gives a token of 6 * 64 numbers a hidden layer of
# 294,912 units in place of 768. So a ViT-Tiny-like call with sensible numbers has a hundred million parameters or more.
#
# Output seen:
#   mlp_dim=128, dim=64: SimpleViT's hidden layers have 128 units, JumboViT's 8,192
#   jumbo_ff_mult=2, class token of 384 numbers: 294,912 hidden units
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet torch==2.14.1 vit-pytorch==1.26.14
env/bin/python -W ignore - <<'PY'
from torch import nn
from vit_pytorch.jumbo_vit import JumboViT
from vit_pytorch.simple_vit import SimpleViT

SHAPE = {"image_size": 32, "patch_size": 16, "num_classes": 10, "dim": 64, "depth": 1, "heads": 1, "dim_head": 16}


def widest(net):
    return max(m.out_features for m in net.modules() if isinstance(m, nn.Linear))


simple = SimpleViT(**SHAPE, mlp_dim=128)
jumbo = JumboViT(**SHAPE, mlp_dim=128, num_jumbo_cls=1, jumbo_cls_k=6, jumbo_ff_mult=2)
hidden = widest(simple.transformer), widest(jumbo.layers)
print(f"mlp_dim=128, dim=64: SimpleViT's hidden layers have {hidden[0]} units, JumboViT's {hidden[1]:,}")
print(f"jumbo_ff_mult=2, class token of {6 * 64} numbers: {widest(jumbo.jumbo_ff):,} hidden units")
assert hidden == (128, 8192) and widest(jumbo.jumbo_ff) == 294_912
PY
