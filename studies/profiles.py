"""Chapter 14's study: where a step's time goes, kernel by kernel, in our ViT and in two that were fastest beside it.

The places and the sizes are those of `studies/speed.py`. torch's profiler says how long each kernel took by itself, and
how often it was called. Other work ran on the machine and interrupted some calls. So a run does the same step `STEPS`
times and keeps, for each call, its quietest time; the calls come in the same order each time. The networks take turns.
The profiler itself costs a microsecond or two for each call, which counts for most where calls are short.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch.profiler import ProfilerActivity, profile

from studies.harness import main
from studies.shared import constants, grid
from studies.speed import SHAPES, whole_step
from studies.store import Store

NETS = ("ours, class token", "timm", "ours, mean", "vit-pytorch SimpleViT")
MODES = ("training", "inference")
STEPS = 4
REPEATS = 3
KINDS = {  # of kernels, by words in their names; the first that fits
    "products": ("addmm", "mm", "mkldnn_convolution", "convolution_backward"),
    "attention": ("_scaled_dot_product", "bmm", "baddbmm", "_softmax"),  # fused, or by hand
    "GELU": ("gelu", "gelu_backward"),
    "norms": ("native_layer_norm",),
    "copies": ("copy_", "cat", "fill_"),
    "sums": ("add", "add_", "sum", "mul", "mul_", "div", "div_", "mean"),
    "optimizer": ("_fused_adamw_",),
}
STARTS = ("_scaled_dot_product", "_softmax", "native_layer_norm")  # a kernel and its backward pass
KEY = ("shape", "mode", "net", "repeat")
predicted = {
    "training, 28 px: products, % of our step": {
        "expected": 50,
        "reason": "the chapter expected 75 % of a block's forward pass; the backward pass has more of everything else",
    },
    "training, 28 px: attention, SimpleViT's time (by hand) of ours (fused)": {
        "expected": 1.0,
        "reason": "by hand took 1.0 to 1.1 of the fused time at 50 tokens in the study of speed",
    },
    "training, 28 px: sums and copies, ours less SimpleViT's, % of our step": {
        "expected": 3,
        "reason": "SimpleViT is 4 % faster; its q, k and v have no bias, so no gradient of it is summed",
    },
    "inference, 32 px: products, timm's time of ours": {
        "expected": 1.0,
        "reason": "the same products of the same sizes; that timm took 0.92 of our time lies elsewhere",
    },
    "training, 28 px: copies, timm's calls of ours (class token)": {
        "expected": 1.0,
        "reason": "a first look at 32 px had 117 in both",
    },
}


def kind(kernel: str) -> str:
    """The kind of a kernel by its name, as "aten::mm": one of `KINDS`, else "other"."""
    name = kernel.rpartition("::")[2]
    for found, words in KINDS.items():
        if name in words or any(name.startswith(word) for word in words if word in STARTS):
            return found
    return "optimizer" if name.startswith("Optimizer") else "other"


def calls_of(step: Callable) -> tuple[list[str], list[float]]:
    """What was called in one step, in order, and each call's own microseconds."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
        step()
    events = sorted(seen.events(), key=lambda event: (event.time_range.start, -event.time_range.end))
    return [event.key for event in events], [event.self_cpu_time_total for event in events]


def quietest(step: Callable, steps: int) -> tuple[Counter, Counter]:
    """({kind: its milliseconds}, {kind: its calls}) of a step: of each call the shortest time among several steps.

    Raises ValueError where two steps don't call the same.
    """
    names, best = calls_of(step)
    for _ in range(steps - 1):
        again, times = calls_of(step)
        if again != names:
            raise ValueError(f"expected the same {len(names)} calls in each step, got {len(again)} in another")
        best = [min(pair) for pair in zip(best, times, strict=True)]
    spent, count = Counter(), Counter()
    for name, microseconds in zip(names, best, strict=True):
        spent[kind(name)] += microseconds / 1e3
        count[kind(name)] += 1
    return spent, count


@cache
def warm(shape: str, mode: str, net: str) -> Callable:
    """The step of a net, run twice already: AdamW makes its state in the first."""
    torch.manual_seed(0)
    step, _ = whole_step(shape, mode, net)
    step()
    step()
    return step


def run(store: Store, name: dict) -> dict:
    """Profile a few steps."""
    started = time.perf_counter()
    spent, count = quietest(warm(*(name[field] for field in KEY[:-1])), STEPS)
    kinds = (*KINDS, "other")
    row = name | {f"ms_{one}": round(spent[one], 4) for one in kinds} | {f"calls_{one}": count[one] for one in kinds}
    return row | {"seconds": round(time.perf_counter() - started, 2)}


def runs(store: Store) -> Iterator[dict]:
    """Yield the key fields of every run, in order: the nets in turn, the first of them another in each repeat."""
    for shape in SHAPES:
        for mode in MODES:
            for repeat in range(REPEATS):
                turn = repeat % len(NETS)
                yield from grid(KEY, shape=shape, mode=mode, net=NETS[turn:] + NETS[:turn], repeat=repeat)


def replay(store: Store) -> dict:
    """How often each kind of kernel is called in a training step, which no machine's speed moves."""
    step, found = "32 px, patch 4, D 192", {}
    for net in NETS:
        count = quietest(warm(step, "training", net), 1)[1]
        found |= {f"{net}: {one}": count[one] for one in KINDS if one != "products"}  # convolutions differ by machine
    return found


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    return constants(globals(), "SHAPES", "NETS", "MODES", "STEPS", "REPEATS", "KINDS", "STARTS")


if __name__ == "__main__":
    main("profiles")
