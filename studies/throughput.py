"""What a second process brings: images a second of the book's training loop, in one process and in two, side by side.

It starts two processes, and takes two to three minutes on a quiet machine.
Both live through the whole study, so that variants can take turns within seconds; where only one is at work the other
sleeps. The order of the variants turns by one in each repeat. Every run trains a fresh net for two passes over images
of noise (what they show does not change the time); the second pass counts.

    1 process, 1 thread     the whole batch
    1 process, 2 threads    the whole batch: what the same two cores do without a launcher
    2 processes, apart      half a batch each, and nothing exchanged: what the cores and the memory they share allow
    2 processes             half a batch each, gradients averaged by DistributedDataParallel, through gloo

After each run in two processes the exchange is timed alone: one all-reduce of as many numbers as the net has.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from unittest import mock

import torch
import torch.distributed as dist

from studies.harness import main
from studies.store import Store
from vitutils import check, data, distributed, train
from vitutils.models.zoo import named_net

SIDE = 28
NETS = {("book/7", 128): 20, ("Ti/7", 128): 2, ("Ti/7", 16): 6}  # (net, images a batch): batches a pass
VARIANTS = {  # processes, threads of each, whether they exchange gradients
    "1 process, 1 thread": (1, 1, False),
    "1 process, 2 threads": (1, 2, False),
    "2 processes, apart": (2, 1, False),
    "2 processes": (2, 1, True),
}
REPEATS = 7
EXCHANGES = 5
KEY = ("net", "batch", "variant", "repeat")


def noise(images: int) -> data.Dataset:
    """Images of noise for training, and two to be judged on."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images + 2, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    labels = torch.arange(images + 2) % 10
    return data.Dataset(
        name="noise",
        train_images=pixels[2:],
        train_labels=labels[2:],
        test_images=pixels[:2],
        test_labels=labels[:2],
        classes=tuple("0123456789"),
        mean=torch.full((1,), 0.5),
        std=torch.full((1,), 0.3),
        source="a generator of random numbers",
    )


def one_pass(net: str, batch: int, batches: int) -> float:
    """Train a fresh net for two passes with the ranks that `distributed.here` tells of; return the second's seconds."""
    torch.manual_seed(0)
    model = named_net(net, (1, SIDE, SIDE), 10)
    history = train.fit(model, noise(batch * batches), train.Recipe(epochs=2, batch_size=batch))
    first, second = (epoch["seconds"] for epoch in history.epochs)
    return second - first


def alone(net: str, batch: int, batches: int) -> float:
    """The same in this process, as if no other had joined."""
    with mock.patch.object(distributed, "here", return_value=distributed.Ranks()):
        return one_pass(net, batch, batches)


def exchange(numbers: int) -> float:
    """Seconds of one all-reduce of so many numbers, the middle one of a few."""
    tensor, seconds = torch.zeros(numbers), []
    for _ in range(EXCHANGES):
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(tensor)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def run(store: Store, name: dict, batches: int | None = None) -> dict:
    """Do one run with both ranks; return its row."""
    net, batch, here = name["net"], name["batch"], distributed.here()
    batches = batches or NETS[net, batch]
    processes, threads, together = VARIANTS[name["variant"]]
    numbers = check.count_parameters(named_net(net, (1, SIDE, SIDE), 10))
    torch.set_num_threads(threads)
    seconds = reduce = 0.0
    dist.barrier()
    if together:
        seconds = one_pass(net, batch, batches)
    elif here.rank < processes:
        seconds = alone(net, batch // processes, batches)
    torch.set_num_threads(1)
    dist.barrier()
    if together:
        reduce = exchange(numbers)
    slowest = max(distributed.gather(seconds))
    return {
        **name,
        "processes": processes,
        "threads": threads,
        "parameters": numbers,
        "steps": batches,
        "images_per_second": round(batch * batches / slowest, 1),
        "ms_per_step": round(1_000 * slowest / batches, 3),
        "ms_all_reduce": round(1_000 * reduce, 3),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "seconds": round(slowest, 3),
    }


def runs(store: Store) -> Iterator[dict]:
    """Yield the key fields of every run, in order."""
    variants = list(VARIANTS)
    for repeat in range(REPEATS):
        turn = repeat % len(variants)
        for net, batch in NETS:
            for variant in variants[turn:] + variants[:turn]:
                yield {"net": net, "batch": batch, "variant": variant, "repeat": repeat}


def work(store: Store) -> None:
    """Start the two processes, and wait for them."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""} | os.environ
    command = [*launcher, "-m", "studies", "throughput", "--join", "--folder", str(store.folder)]
    if status := subprocess.run(command, env=environment).returncode:
        sys.exit(status)


def join(store: Store) -> None:
    """Be one of the two processes, as torchrun starts them: both do each run, the first keeps the row."""
    with distributed.joined() as here:
        missing = distributed.gather([name for name in runs(store) if not store.has(name)])[0]  # as rank 0 sees it
        for net, batch in NETS:
            for variant in VARIANTS:  # a first run of each is slower, and is not kept
                run(store, {"net": net, "batch": batch, "variant": variant}, batches=1)
        for name in missing:
            row = run(store, name)
            if here.first:
                store.append(row)
                print(*(f"{key}={value}" for key, value in row.items()), flush=True)


def replay(store: Store) -> dict:
    """What does not depend on the machine: sizes, and the losses of two passes over noise in one process."""
    nets = {net: named_net(net, (1, SIDE, SIDE), 10) for net, _ in NETS}
    torch.manual_seed(0)
    history = train.fit(named_net("book/7", (1, SIDE, SIDE), 10), noise(256), train.Recipe(epochs=2, batch_size=32))
    losses = " ".join(f"{loss:.4f}" for loss in history.losses)
    return {f"parameters of {net}": check.count_parameters(model) for net, model in nets.items()} | {"losses": losses}


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    return {
        "side": SIDE,
        "nets": [[net, batch, batches] for (net, batch), batches in NETS.items()],
        "variants": VARIANTS,
        "repeats": REPEATS,
        "exchanges": EXCHANGES,
        "backend": "gloo",
    }


COMMANDS = {"join": join}

if __name__ == "__main__":
    main("throughput")
