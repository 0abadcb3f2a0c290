#!/usr/bin/env bash
# timm 1.0.31, torchvision 0.29.1, torch 2.14.1, Python 3.11
#
# In timm's Swin, wherever the window does not divide the grid, a shifted window lets the bottom rows of the image look
# at the top row, and the mask, which is there to prevent just that, does not.
#
# timm rolls the grid first and pads it then; its mask is laid out for a grid that was padded first. So the seam between
# the last and the first row lies inside a region that the mask takes for one piece, and what the mask cuts off is
# padding. torchvision pads, then rolls: there row 0 reaches its own window and no other. At 224 px with windows of 7,
# where nothing is padded, the two agree to rounding; timm at img_size=256 (grids of 64, 32, 16, 8) pads every stage.
#
# Output seen (grid 16 x 16, window 7, shift 3; row 0 of a block's input is changed):
#   timm         rows that change: 0 10 11 12 13 14 15
#   torchvision  rows that change: 0 1 2
#   grid 14 x 14, which 7 divides: timm 0 1 2 , torchvision 0 1 2
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet torch==2.14.1 torchvision==0.29.1 timm==1.0.31
env/bin/python -W ignore - <<'PY'
import torch
from timm.models.swin_transformer import SwinTransformerBlock
from torchvision.models.swin_transformer import ShiftedWindowAttention

torch.manual_seed(0)


def moved(attend, side):
    """The rows of attend's output that change with row 0 of its input."""
    grid = torch.randn(1, side, side, 8)
    other = grid.clone()
    other[:, 0] += 1
    with torch.no_grad():
        change = (attend(other) - attend(grid)).abs().amax(dim=(0, 2, 3))
    return (change > 1e-6).nonzero().flatten().tolist()


theirs = ShiftedWindowAttention(8, [7, 7], [3, 3], 2).eval()
found = {}
for side in (16, 14):
    block = SwinTransformerBlock(8, (side, side), num_heads=2, window_size=7, shift_size=3).eval()
    found["timm", side], found["torchvision", side] = moved(block._attn, side), moved(theirs, side)
for name in ("timm", "torchvision"):
    print(f"{name:12} rows that change:", *found[name, 16])
print("grid 14 x 14, which 7 divides: timm", *found["timm", 14], ", torchvision", *found["torchvision", 14])
assert found["torchvision", 16] == found["torchvision", 14] == found["timm", 14] == [0, 1, 2]
assert 15 in found["timm", 16] and 11 in found["timm", 16]
PY
