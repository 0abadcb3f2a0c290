"""Chapter 14's study: one network, ViT-B/16, and one image, counted by six tools.

The networks are the same on paper: torchvision's, timm's and ours with fused attention, and ours with attention by
hand. All in eval mode, 1,000 classes, 224 x 224 pixels. What a tool counts doesn't depend on the machine, but does on
its version, which stands in each row. Four tools are no part of the book; install them beside it:

    pip install --no-deps --target FOLDER fvcore==0.1.5.post20221221 iopath==0.1.10 yacs==0.1.8 portalocker termcolor \
        tabulate ptflops==0.7.5 thop==0.1.1.post2209072238 torchinfo==1.8.0
    PYTHONPATH=FOLDER python -m studies flop_counts
"""

import contextlib
import copy
import importlib.metadata
import io
import logging
import time
import warnings
from collections.abc import Callable, Iterator

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from studies.harness import main
from studies.shared import constants, grid
from studies.speed import ByHand
from studies.store import Store
from vitutils.models import ViT, ViTConfig

SIDE, P, D, DEPTH, HEADS, K = 224, 16, 768, 12, 12, 1_000  # ViT-B/16
SMALL = (32, 8, 48, 2, 4, 10)  # the same, for the replay; torchvision runs fused layers for even numbers of heads
NETS = ("torchvision", "timm", "ours", "ours, attention by hand")
TOOLS = (
    ("FlopCounterMode", "gradients on"),
    ("FlopCounterMode", "gradients off"),
    ("torch.profiler", "gradients off"),
    ("fvcore", "traced"),
    ("ptflops", "by module"),
    ("ptflops", "by function"),
    ("thop", "by module"),
    ("torchinfo", "by module"),
)
VERSIONS = {"fvcore": "0.1.5.post20221221", "ptflops": "0.7.5", "thop": "0.1.1-2209072238", "torchinfo": "1.8.0"}
KEY = ("tool", "mode", "net")
predicted = {
    "torch.profiler, ours, billions": {
        "expected": 33.7,
        "reason": "it has formulas for products and convolutions, as FlopCounterMode, and none for fused attention",
    },
    "fvcore, ours with attention by hand, billions": {
        "expected": 17.6,
        "reason": "two products that it knows take the place of a kernel that it leaves out; a first look gave 16.9",
    },
    "FlopCounterMode, ours with attention by hand, billions": {
        "expected": 35.1,
        "reason": "the sum by hand, a multiplication and an addition as two; a first look at fused attention gave 33.7",
    },
    "thop, ours with attention by hand, billions": {
        "expected": 16.9,
        "reason": "it counts modules, and products of two activations belong to none; a first look at fused gave 16.9",
    },
}


def make_net(net: str, side: int, P: int, D: int, depth: int, h: int, K: int) -> nn.Module:
    """A fresh net by its name in `NETS`, in eval mode."""
    if net == "torchvision":
        return torchvision.models.VisionTransformer(side, P, depth, h, D, 4 * D, num_classes=K).eval()
    sizes = dict(img_size=side, patch_size=P, num_classes=K, embed_dim=D, depth=depth, num_heads=h)
    if net == "timm":
        return timm.models.VisionTransformer(**sizes).eval()
    model = ViT(ViTConfig(**sizes)).eval()
    for block in model.blocks if net.endswith("by hand") else ():
        block.attn = ByHand(D, h).eval()
    return model


def flop_counter_mode(net: nn.Module, image: Tensor, mode: str) -> float:
    """torch's counter: a formula for each kernel it knows."""
    with torch.set_grad_enabled(mode == "gradients on"), FlopCounterMode(display=False) as counter:
        net(image)
    return counter.get_total_flops()


def torch_profiler(net: nn.Module, image: Tensor, mode: str) -> float:
    """The profiler's estimate from the shapes of operators."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], with_flops=True, acc_events=True) as seen:
        net(image)
    return sum(event.flops for event in seen.key_averages())


def fvcore(net: nn.Module, image: Tensor, mode: str) -> float:
    """Meta's counter: it traces the net, and has a formula for each operator that it knows."""
    from fvcore.nn import FlopCountAnalysis

    return FlopCountAnalysis(net, image).unsupported_ops_warnings(False).total()


def ptflops(net: nn.Module, image: Tensor, mode: str) -> float:
    """A formula for each module, or for each function that is called."""
    from ptflops import get_model_complexity_info

    backend = "pytorch" if mode == "by module" else "aten"
    size = tuple(image.shape[1:])
    return get_model_complexity_info(net, size, as_strings=False, print_per_layer_stat=False, backend=backend)[0]


def thop(net: nn.Module, image: Tensor, mode: str) -> float:
    """A formula for each module."""
    from thop import profile as count

    return count(net, (image,), verbose=False)[0]


def torchinfo(net: nn.Module, image: Tensor, mode: str) -> float:
    """A summary, layer by layer."""
    from torchinfo import summary

    return summary(net, input_data=image, verbose=0).total_mult_adds


COUNTERS: dict[str, Callable] = {
    "FlopCounterMode": flop_counter_mode,
    "torch.profiler": torch_profiler,
    "fvcore": fvcore,
    "ptflops": ptflops,
    "thop": thop,
    "torchinfo": torchinfo,
}


def count(tool: str, mode: str, net: nn.Module, side: int) -> int:
    """What a tool counts for one image. The net stays as it is: some tools leave their hooks in it."""
    quiet, before = contextlib.redirect_stdout(io.StringIO()), logging.root.manager.disable
    with quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            return int(COUNTERS[tool](copy.deepcopy(net), torch.zeros(1, 3, side, side), mode))
        finally:
            logging.disable(before)


def version(tool: str) -> str:
    """The version of a tool, or torch's. Raises SystemExit for another one than this study names."""
    if tool not in VERSIONS:
        return torch.__version__
    try:
        found = importlib.metadata.version(tool)
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found != VERSIONS[tool]:
        raise SystemExit(f"expected {tool} {VERSIONS[tool]}, found {found}: see the top of studies/flop_counts.py")
    return found


def run(store: Store, name: dict) -> dict:
    """One count."""
    started, tool = time.perf_counter(), name["tool"]
    row = name | {"version": version(tool), "timm": timm.__version__, "torchvision": torchvision.__version__}
    row["count"] = count(tool, name["mode"], make_net(name["net"], SIDE, P, D, DEPTH, HEADS, K), SIDE)
    return row | {"seconds": round(time.perf_counter() - started, 2)}


def runs(store: Store) -> Iterator[dict]:
    """Yield the key fields of every run, in order."""
    for tool, mode in TOOLS:
        yield from grid(KEY, tool=tool, mode=mode, net=NETS)


def replay(store: Store) -> dict:
    """torch's own two tools on nets of a few thousand parameters."""
    return {
        f"{tool}, {mode}, {net}": count(tool, mode, make_net(net, *SMALL), SMALL[0])
        for tool, mode in TOOLS
        if tool not in VERSIONS
        for net in NETS
    }


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    return constants(globals(), "SIDE", "P", "D", "DEPTH", "HEADS", "K", "SMALL", "NETS", "TOOLS", "VERSIONS")


if __name__ == "__main__":
    main("flop_counts")
