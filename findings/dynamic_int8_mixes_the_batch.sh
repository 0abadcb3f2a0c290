#!/usr/bin/env bash
# onnxruntime 1.32.0, onnx 1.23.2, Python 3.11
#
# After onnxruntime's quantize_dynamic, what a network answers to one input depends on the others in its batch.
#
# Activations are rounded by the range of the whole tensor, the axis of the batch included (DynamicQuantizeLinear has one
# scale a tensor). One bright image makes the steps coarse for all. A row of a matrix product, which knows nothing of the
# other rows in float32, changes by a fifth of the largest output here once a row 50 times as large stands beside it.
# Feeding one input at a time gives answers that depend on nothing else.
#
# Output seen:
#   largest output of row 0: 18.5; it changes by 4.12 when another row stands beside it (float32: 0.00)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet onnxruntime==1.32.0 onnx==1.23.2 sympy
env/bin/python -W ignore - <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

random = np.random.default_rng(0)
w = random.normal(size=(64, 8)).astype("float32")
x = random.normal(size=(2, 64)).astype("float32")
x[1] *= 50
ends = [helper.make_tensor_value_info(name, 1, ["B", width]) for name, width in (("x", 64), ("y", 8))]
product = helper.make_node("MatMul", ["x", "w"], ["y"])
graph = helper.make_graph([product], "one layer", ends[:1], ends[1:], [numpy_helper.from_array(w, "w")])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), "float.onnx")
quantize_dynamic("float.onnx", "int8.onnx")


def change(file):
    run = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run
    together, alone = run(None, {"x": x})[0][0], run(None, {"x": x[:1]})[0][0]
    return abs(together - alone).max()


largest, small, plain = abs(x[0] @ w).max(), change("int8.onnx"), change("float.onnx")
print(f"largest output of row 0: {largest:.1f}; it changes by {small:.2f} when another row stands beside it "
      f"(float32: {plain:.2f})")
raise SystemExit(not (small > 0.1 * largest and plain < 1e-4))
PY
