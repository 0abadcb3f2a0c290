"""Chapter 14's study: where a step's time goes, kernel by kernel, in our ViT and in two that were fastest beside it.

Sizes are those of `studies/speed.py`. Every kernel that torch calls is timed by itself. Other work ran
on the machine and interrupted the kernels: so what counts is the time that the processor spent on this thread, not the
time on the clock, which torch's profiler shows (a first try with it gave kernels several times their time). A run does
the same step `STEPS` times and keeps the shortest time of each call; the calls come in the same order each time. The
networks take turns.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from studies.harness import main
from studies.shared import constants, grid
from studies.speed import SHAPES, whole_step
from studies.store import Store

NETS = ("ours, class token", "timm", "ours, mean", "vit-pytorch SimpleViT")
PLACES = (  # where ours was more than 2 % behind
    ("28 px, patch 4, D 64", "training"),
    ("32 px, patch 4, D 192", "inference"),
    ("224 px, Ti/16", "inference"),
)
STEPS = 2
REPEATS = 2
KINDS = {  # of kernels, by the first words of their names; the first that fits
    "products": ("addmm", "mm", "linear", "conv"),
    "attention": ("_scaled_dot_product", "scaled_dot_product", "bmm", "baddbmm", "matmul", "_softmax", "softmax"),
    "GELU": ("gelu",),
    "norms": ("native_layer_norm", "layer_norm"),
    "copies": ("copy_", "clone", "cat", "stack", "fill_", "zero_", "_to_copy", "_unsafe_view", "reshape", "contiguous"),
    "sums": ("add", "sum", "mul", "div", "mean"),
    "optimizer": ("_fused_adamw_", "_foreach"),
}
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
    return next((found for found, words in KINDS.items() if name.startswith(words)), "other")


class Timed(TorchDispatchMode):
    """While it is on, note each kernel's name and the microseconds that the processor spent on it."""

    def __init__(self):
        super().__init__()
        self.names, self.spent = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        started = time.thread_time_ns()
        result = func(*args, **(kwargs or {}))
        self.spent.append((time.thread_time_ns() - started) / 1e3)
        self.names.append(func.name().partition(".")[0])
        return result


def calls_of(step: Callable) -> tuple[list[str], list[float]]:
    """What was called in one step, in order, and each call's own microseconds."""
    with Timed() as seen:
        step()
    return seen.names, seen.spent


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
    for shape, mode in PLACES:
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
    shapes = {shape: SHAPES[shape] for shape, _ in PLACES}
    return {"shapes": shapes, **constants(globals(), "PLACES", "NETS", "STEPS", "REPEATS", "KINDS")}


if __name__ == "__main__":
    main("profiles")
