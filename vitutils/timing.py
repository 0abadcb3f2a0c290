"""Time and memory, measured side by side: machines are noisy, so candidates alternate in one process."""

import time
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def clock() -> float:
    """Return seconds, once an accelerator has finished what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()
    return time.perf_counter()


def race(candidates: Mapping[str, Callable[[], object]], repeats: int = 7, warmup: int = 1) -> dict[str, list[float]]:
    """Run every candidate `repeats` times, taking turns, and return seconds: {name: [one a repeat]}.

    Each is first run `warmup` times uncounted. The order turns by one each time, so that none always follows the same
    neighbour. The clock waits for an accelerator to finish. Compare medians and ratios.
    Raises ValueError for no candidates or fewer than one repeat.
    """
    names = list(candidates)
    if not names or repeats < 1:
        raise ValueError(f"expected at least one candidate and one repeat, got {names} and {repeats}")
    for name in names * warmup:
        candidates[name]()
    seconds = {name: [] for name in names}
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            start = clock()
            candidates[name]()
            seconds[name].append(clock() - start)
    return seconds


def kept_bytes(forward: Callable[[], object], without: Iterable[Tensor] = ()) -> int:
    """Return the bytes that autograd keeps for the backward pass of `forward()`, each storage counted once.

    This is what makes training need more memory than inference; it depends on the kernels, not on the machine's state.
    without: tensors that are there anyway and are left out, as `model.parameters()`.
    """
    there = {tensor.untyped_storage().data_ptr() for tensor in without}
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()  # noqa: F841 - its graph must live until all is counted, or addresses would be used again
    return sum(kept.values())
