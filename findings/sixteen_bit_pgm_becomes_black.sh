#!/usr/bin/env bash
# torchvision 0.29.1, Pillow 13.0.0, torch 2.14.1, Python 3.11
#
# The same 16-bit picture is right as PNG and black as PGM, through the transform that torchvision's guides give.
#
# Pillow opens a 16-bit grey PNG as mode "I;16" and a 16-bit PGM (depth maps, microscopes, many lidar sets) as mode "I",
# 32 bits, with the same values 0..65535. v2.ToImage makes uint16 of the one and int32 of the other, and
# v2.ToDtype(torch.float32, scale=True) divides by the largest number of the type: 65,535 or 2,147,483,647. The mean of
# a ramp is 0.5 or 0.000015; as uint8 it is 127.5 or 0, for every pixel. Nothing is said. Whoever "scales by the dtype"
# gets a black data set from a folder in which only the file format differs.
#
# Output seen:
#   ramp.png  mode I;16  torch.uint16  float mean 0.500000  uint8 mean 127.5
#   ramp.pgm  mode I     torch.int32   float mean 0.000015  uint8 mean 0.0
#   the pixels are equal: True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet torch==2.14.1 torchvision==0.29.1 pillow==13.0.0 numpy==2.4.6
env/bin/python -W ignore - <<'PY'
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

ramp = np.linspace(0, 65_535, 256 * 256).astype(np.uint16).reshape(256, 256)
Image.fromarray(ramp).save("ramp.png")
with open("ramp.pgm", "wb") as file:  # as netpbm defines it: most significant byte first
    file.write(b"P5 256 256 65535\n" + ramp.astype(">u2").tobytes())
seen, pixels = {}, []
for name in ("ramp.png", "ramp.pgm"):
    picture = Image.open(name)
    pixels.append(np.asarray(picture).astype(np.int64))
    as_float = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])(picture)
    as_bytes = v2.Compose([v2.ToImage(), v2.ToDtype(torch.uint8, scale=True)])(picture)
    kind = v2.functional.to_image(picture).dtype
    seen[name] = f"{picture.mode:5} {kind!s:13} float mean {as_float.mean():.6f}  uint8 mean {as_bytes.float().mean():.1f}"
    print(f"{name}  mode {seen[name]}")
same = bool((pixels[0] == pixels[1]).all())
print(f"the pixels are equal: {same}")
assert same
assert seen["ramp.png"] == "I;16  torch.uint16  float mean 0.500000  uint8 mean 127.5"
assert seen["ramp.pgm"] == "I     torch.int32   float mean 0.000015  uint8 mean 0.0"
PY
