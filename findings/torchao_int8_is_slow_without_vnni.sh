#!/usr/bin/env bash
# torchao 0.18.0, torch 2.14.1, Python 3.11
#
# On a CPU without VNNI, torchao's dynamic int8 takes over ten times as long as float32, compiled or not.
#
# Its products go through torch._int_mm, which has no fast kernel for such a processor (an EPYC with AVX2 here), and nothing
# warns. torch.ao's older quantize_dynamic, which torchao replaces, computes the same int8 products about as fast as
# float32. torch.compile changes nothing: it calls the same product. Where there is VNNI, this script ends with 1.
#
# Output seen (processor time, one thread):
#   one MLP of ViT-Tiny, 197 tokens, time of float32's: torch.ao 1.0, torchao 15.2, torchao compiled 14.6
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet torch==2.14.1 torchao==0.18.0
env/bin/python -W ignore - 2> log <<'PY' || { cat log; exit 1; }
import copy
import time
from statistics import median

import torch
from torch import nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

torch.manual_seed(0)
torch.set_num_threads(1)
mlp = nn.Sequential(nn.Linear(192, 768), nn.GELU(), nn.Linear(768, 192)).eval()
tokens = torch.randn(197, 192)
small = copy.deepcopy(mlp)
quantize_(small, Int8DynamicActivationInt8WeightConfig())
older = torch.ao.quantization.quantize_dynamic(copy.deepcopy(mlp), {nn.Linear}, dtype=torch.qint8)
nets = {"float32": mlp, "torch.ao": older, "torchao": small, "torchao compiled": torch.compile(small)}
spent = {name: [] for name in nets}
with torch.inference_mode():
    exact = mlp(tokens)
    for name, net in nets.items():
        assert (net(tokens) - exact).abs().max() < 0.05 * exact.abs().max()  # and the first call is not counted
    for _ in range(15):  # in turns, as other work may run beside this
        for name, net in nets.items():
            started = time.process_time()
            net(tokens)
            spent[name].append(time.process_time() - started)
times = {name: median(a / b for a, b in zip(spent[name], spent["float32"])) for name in nets if name != "float32"}
print("one MLP of ViT-Tiny, 197 tokens, time of float32's:", ", ".join(f"{name} {t:.1f}" for name, t in times.items()))
raise SystemExit(not (times["torch.ao"] < 2 and times["torchao"] > 4 and times["torchao compiled"] > 4))
PY
