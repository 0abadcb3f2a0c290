"""Where a notebook runs: seed, device, scale, and one line that says so."""

import os
import platform
import random
import warnings
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

SCALES = ("smoke", "cpu", "gpu")
T = TypeVar("T")


@dataclass(frozen=True)
class Environment:
    """What `setup` found. Read it, do not change it.

    device: the torch device that the chapter computes on.
    scale: "smoke", "cpu" or "gpu"; it changes sizes (images, steps, seeds, widths), never code paths.
    seed: the seed that Python, NumPy and torch were given.
    """

    device: torch.device
    scale: str
    seed: int

    def pick(self, *, smoke: T, cpu: T, gpu: T) -> T:
        """Return the value for the present scale: `env.pick(smoke=1, cpu=5, gpu=30)`."""
        return {"smoke": smoke, "cpu": cpu, "gpu": gpu}[self.scale]


def find_device() -> torch.device:
    """Return cuda where torch finds one, else Apple's mps, else cpu."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def find_scale(device: torch.device) -> str:
    """Return the scale that `VITBOOK_SCALE` asks for; unset, "gpu" on an accelerator and "cpu" elsewhere.

    Raises ValueError for a value that is none of the three.
    """
    scale = os.environ.get("VITBOOK_SCALE", "").strip().lower()
    if not scale:
        return "cpu" if device.type == "cpu" else "gpu"
    if scale not in SCALES:
        raise ValueError(f"VITBOOK_SCALE is {scale!r}; expected one of: {', '.join(SCALES)} (or leave it unset)")
    return scale


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (every device) with the same number."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries that chapters call still draw from the global generator
    torch.manual_seed(seed)


def setup(seed: int = 0) -> Environment:
    """Seed everything, choose device and scale, set the plotting style, print one line, return all of it.

    Raises ValueError if `VITBOOK_SCALE` is not one of smoke, cpu, gpu.
    """
    device = find_device()
    env = Environment(device=device, scale=find_scale(device), seed=seed)
    seed_everything(seed)
    # timm's import asks tqdm for a widget bar; the book has none, and stderr on a page fails the build
    warnings.filterwarnings("ignore", message="IProgress not found")
    from vitutils import plot  # matplotlib: only where somebody draws

    plot.use_style()
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"device {device.type} ({name}), scale {env.scale}, seed {seed}"
    )
    return env
