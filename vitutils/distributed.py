"""One process or several: which of them this is, and how they communicate.

`torchrun --nproc-per-node 2 -m vitutils.train ...` starts two processes, called *ranks*, and gives each its number in
the environment. Without a launcher there is one process, rank 0 of 1, and the functions here have nothing to do.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")


class RankError(Exception):
    """What went wrong on some rank, raised on all of them."""


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is: `rank` is 0 to `world` - 1."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process speaks for all: only it prints and writes files."""
        return self.rank == 0

    def weight(self, count: int) -> float:
        """How much this rank's mean counts, so that the mean over the ranks is the mean over all `count` images.

        Their parts (see `share`) may differ by one image; where they do not, the weight is 1.
        """
        return self.world * len(share(self.rank, self.world, count)) / count

    def check_enough(self, counts: Mapping[str, int]) -> None:
        """Raise ValueError unless every rank can have one image of each: {"to train on": 500, ...}."""
        if min(counts.values()) < self.world:
            told = ", ".join(f"{count} {what}" for what, count in counts.items())
            raise ValueError(f"too few images for {self.world} ranks: {told}; each rank needs at least one of each")


def share(rank: int, world: int, count: int) -> range:
    """Which of a batch's `count` images are this rank's: every n-th, n as many ranks as can have two images each.

    The rest have none: a BatchNorm could not train on one image.
    """
    parts = max(1, min(world, count // 2))
    return range(rank, count, parts) if rank < parts else range(0)


def here() -> Ranks:
    """Say which process this is, once the processes have joined (see `joined`); before that, rank 0 of 1."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that torchrun started, and leave them at the end; without a launcher, or joined already, do
    nothing.

    They exchange tensors on the CPU through gloo and tensors on a GPU through nccl. Where they meet, on one machine or
    several, is torchrun's business (`--rdzv-endpoint`).
    """
    if not dist.is_available() or dist.is_initialized() or not dist.is_torchelastic_launched():
        yield here()
        return
    store, rank, world = next(rendezvous("env://"))
    if world == int(os.environ["LOCAL_WORLD_SIZE"]):
        # After a restart torchrun's store still holds the addresses of the dead (pytorch issue 135712, torch 2.15):
        # look past them. Machines count restarts apart; there the launchers need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
        store = dist.PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    nccl = torch.cuda.is_available() and dist.is_nccl_available()  # torch on Windows has CUDA without it
    backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    yield here()
    # Only after a good end: on nccl this waits for the other ranks, and after an error here they wait for this one.
    # The process then ends without it, torchrun sees that, and ends the others.
    dist.destroy_process_group()


def gather(value: T) -> list[T]:
    """Return every rank's value, in the order of the ranks, on every rank. Each rank must call it."""
    values = [value] * here().world
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def agree(action: Callable[[], T], errors: tuple[type[Exception], ...]) -> T:
    """Run `action` on every rank and return its result; if it raised one of `errors` on any, raise RankError on all.

    Without this the ranks that came through would wait for the one that did not. The message gives each reason once,
    and says where it arose unless that was everywhere. A single process raises the error itself.
    """
    if here().world == 1:
        return action()
    result = reason = None
    try:
        result = action()
    except errors as error:
        reason = str(error) or type(error).__name__
    ranks_of = {}
    for rank, theirs in enumerate(gather(reason)):
        if theirs is not None:
            ranks_of.setdefault(theirs, []).append(rank)
    if ranks_of:
        everywhere = sum(map(len, ranks_of.values())) == here().world and len(ranks_of) == 1
        raise RankError(
            "; ".join(
                theirs if everywhere else f"rank {', '.join(map(str, ranks))}: {theirs}"
                for theirs, ranks in ranks_of.items()
            )
        )
    return result
