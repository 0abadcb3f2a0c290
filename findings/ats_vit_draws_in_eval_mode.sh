#!/usr/bin/env bash
# vit-pytorch 1.26.14, torch 2.14.1, Python 3.11
#
# vit-pytorch's Adaptive Token Sampling ViT draws at random in eval mode too: the same image, asked twice, is answered
# differently.
#
# Which tokens go on is chosen with Gumbel noise that no `self.training` guards. So eval() with every dropout at 0 is not
# a function of the image: a test accuracy changes from run to run, cached features never match, and an image's answer
# depends on what was drawn before it, its place in the batch included. Only a fixed seed before each call repeats it.
#
# Output seen:
#   eval mode, dropout 0: same image twice, largest difference above 0.01: True
#   with torch.manual_seed before each call: 0.0
#   the plain ViT of the same sizes: 0.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet torch==2.14.1 vit-pytorch==1.26.14
env/bin/python -W ignore - <<'PY'
import torch
from vit_pytorch import ViT
from vit_pytorch.ats_vit import ViT as Sampling

sizes = dict(image_size=64, patch_size=8, num_classes=10, dim=64, depth=2, heads=2, mlp_dim=128)
torch.manual_seed(0)
images = torch.randn(3, 3, 64, 64)
sampling = Sampling(max_tokens_per_depth=(16, 8), **sizes).eval()
plain = ViT(**sizes).eval()


@torch.no_grad()
def apart(net, seed=None):
    answers = []
    for _ in range(2):
        if seed is not None:
            torch.manual_seed(seed)
        answer = net(images)
        answers.append(answer[0] if isinstance(answer, tuple) else answer)
    return (answers[0] - answers[1]).abs().max().item()


random, seeded, other = apart(sampling), apart(sampling, seed=1), apart(plain)
print(f"eval mode, dropout 0: same image twice, largest difference above 0.01: {random > 0.01}")
print(f"with torch.manual_seed before each call: {seeded}\nthe plain ViT of the same sizes: {other}")
assert random > 0.01 and seeded == other == 0.0
PY
