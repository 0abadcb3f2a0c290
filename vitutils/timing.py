"""Time, memory and FLOPs. Machines are noisy, so candidates for a race alternate in one process."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitutils.models.modes import eval_mode


def clock() -> float:
    """Return seconds, once an accelerator has finished what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()
    return time.perf_counter()


def race(candidates: Mapping[str, Callable[[], object]], repeats: int = 7, warmup: int = 1) -> dict[str, list[float]]:
    """Run every candidate `repeats` times, taking turns, and return seconds: {name: [one per repeat]}.

    Each first runs `warmup` times without counting. The order rotates by one each time, so that none always follows the
    same neighbour. The clock waits for an accelerator to finish. Compare medians and ratios.
    Raises ValueError for no candidates, one that cannot be called, or fewer than one repeat.
    """
    names = list(candidates)
    if not names or repeats != int(repeats) or repeats < 1 or warmup != int(warmup) or warmup < 0:
        got = f"{names}, {repeats} and {warmup}"
        raise ValueError(f"expected at least one candidate and one repeat, and 0 warm-ups or more, got {got}")
    if wrong := [name for name in names if not callable(candidates[name])]:
        raise ValueError(f"expected functions without arguments, got a result already: {', '.join(map(str, wrong))}")
    repeats, warmup = int(repeats), int(warmup)
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


def _storages(tensor: Tensor) -> list[torch.UntypedStorage]:
    """Where a tensor's numbers lie: a sparse one has them in several places; on "meta" there are none, but a size."""
    if tensor.layout == torch.sparse_coo:
        return [part.untyped_storage() for part in (tensor._indices(), tensor._values())]
    if tensor.layout != torch.strided:
        raise ValueError(f"expected dense or sparse_coo tensors, got {tensor.layout}")
    return [tensor.untyped_storage()]


def kept_bytes(forward: Callable[[], object], without: Iterable[Tensor] = ()) -> int:
    """Return the bytes that autograd keeps for the backward pass of `forward()`, each storage counted once.

    This is what makes training need more memory than inference; it depends on the kernels, not on the machine's state.
    without: tensors to leave out because they exist anyway, such as `model.parameters()`. Raises ValueError for a
    forward that is not a function, and for a compressed sparse tensor.
    """
    if not callable(forward):
        raise ValueError(f"expected a function without arguments, got a {type(forward).__name__}: lambda: net(images)")
    there = {storage._cdata for tensor in without for storage in _storages(tensor)}
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.update({s._cdata: s.nbytes() for s in _storages(tensor) if s._cdata not in there})
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()  # noqa: F841 - its graph must live until all is counted, or addresses would be used again
    return sum(kept.values())


@contextmanager
def _taken_apart() -> Iterator[None]:
    """Run nothing fused: attention, encoder layers and recurrent layers as the products that they are made of."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")  # of `flags`: all is put back as it was
        with torch.backends.mkldnn.flags(enabled=False):
            torch.backends.mha.set_fastpath_enabled(False)
            try:
                yield
            finally:
                torch.backends.mha.set_fastpath_enabled(fast)


def count_flops(model: Callable, *inputs: Tensor) -> int:
    """Count the FLOPs of the forward pass `model(*inputs)`, a multiplication and an addition as two.

    Tool: torch's FlopCounterMode. Mode: a module in eval mode (each module's own is put back), forward alone, nothing
    fused; the counter gives a fused kernel that it does not know 0, as attention on a CPU. So the count is the same on
    every device; on "meta", where tensors have shapes alone, nothing is computed. Products of matrices and convolutions
    are counted; norms, softmax, activations and sums are not. Raises ValueError for what can't be called.
    """
    if not callable(model):
        raise ValueError(f"expected a module or function, then its inputs, got a {type(model).__name__}")
    mode = eval_mode(model) if isinstance(model, nn.Module) else nullcontext()
    with mode, torch.enable_grad(), _taken_apart(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops()
