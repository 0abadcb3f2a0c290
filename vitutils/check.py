"""Checks for notebook cells, with messages that teach. All raise AssertionError, except `exercise`, which prints."""

import weakref
from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

LONGEST = 300  # characters of a reason that `exercise` prints


def check_shape(tensor: Tensor, expected: tuple[int, ...], meaning: str = "") -> None:
    """Check that `tensor` has exactly the shape `expected`; `meaning` names the axes, as in "B T D"."""
    names = f" ({meaning})" if meaning else ""
    wanted = f"expected shape {tuple(expected)}{names}"
    assert isinstance(tensor, Tensor), f"{wanted}, got a {type(tensor).__name__}, not a tensor"
    assert tuple(tensor.shape) == tuple(expected), f"{wanted}, got {tuple(tensor.shape)}"


def check_close(got: Tensor, expected: Tensor, tol: float = 1e-5) -> float:
    """Check that two tensors of the same shape differ nowhere by more than `tol`; return the largest difference.

    Two infinities of one sign do not differ; nan differs from everything.
    """
    assert isinstance(expected, Tensor), f"expected a tensor to compare with, got a {type(expected).__name__}"
    check_shape(got, tuple(expected.shape))
    assert got.numel(), f"nothing to compare: both are empty, {tuple(got.shape)}"
    wide = torch.complex128 if got.is_complex() or expected.is_complex() else torch.float64
    got, expected = (part.detach().cpu().to(wide) for part in (got, expected))
    difference = (got - expected).abs().masked_fill(got == expected, 0.0).max().item()
    assert difference <= tol, f"largest difference {difference:.2e}, allowed {tol:.0e}: the two do not compute the same"
    return difference


def check_rows_sum_to_one(attn: Tensor, tol: float = 1e-5) -> None:
    """Check that attention weights are 0 or more and sum to 1 over the last axis, the keys.

    Half precision rounds more coarsely: there the sum may be off by one step of the type, if that is more than `tol`.
    """
    assert isinstance(attn, Tensor), f"expected attention weights, got a {type(attn).__name__}, not a tensor"
    assert attn.ndim and attn.numel(), f"expected attention weights (..., T, T), got the shape {tuple(attn.shape)}"
    attn = attn.detach()
    step = torch.finfo(attn.dtype).eps if attn.is_floating_point() else 0.0
    tol, attn = max(tol, step), attn.double()
    off = (attn.sum(dim=-1) - 1).abs().max().item()
    assert off <= tol, f"rows sum to 1 within {off:.1e}, not {tol:.0e}: the softmax must run over the keys, dim=-1"
    assert attn.min() >= 0, f"expected weights of 0 or more, got {attn.min().item():.1e}: was the softmax left out?"


def count_parameters(module: torch.nn.Module) -> int:
    """Count the trainable numbers in a module."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


class Pieces(TorchFunctionMode):
    """Watch an attention that should go through its keys (..., T, Dh) in pieces: `with Pieces(k) as seen: ...`.

    `seen.keys` is the largest number of different keys in one product; it knows nothing about copies of the keys.
    `seen.numbers` is how many numbers torch's results held at one time, what several tensors share counted once.
    Raises ValueError if `keys` isn't contiguous, or is part of a larger tensor.
    """

    def __init__(self, keys: Tensor) -> None:
        super().__init__()
        if not keys.is_contiguous() or keys.untyped_storage().nbytes() != keys.nbytes:
            raise ValueError("expected keys in memory of their own, got part of a larger tensor: use keys.clone()")
        self.keys = self.numbers = 0
        self._memory = keys.untyped_storage().data_ptr()
        self._places = torch.arange(keys.shape[-2])[:, None].expand(keys.shape).contiguous()
        self._alive, self._held = Counter(), 0  # tensors per place in memory

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = [one for one in (*args, *(kwargs or {}).values()) if isinstance(one, Tensor)]
        given = [one for one in given if one.is_floating_point() and one.numel() > 1]
        if len(given) > 1 and isinstance(out, Tensor):
            same = out.shape if len(given) == 2 else None  # k - k.mean(dim=0) is no product
            self.keys = max([self.keys, *(self._keys_in(one) for one in given if one.shape != same)])
        self._count([one for one in (out if isinstance(out, list | tuple) else [out]) if isinstance(one, Tensor)])
        return out

    def _keys_in(self, tensor: Tensor) -> int:
        """How many different keys a tensor shows; 0 if it is no view of the keys."""
        if tensor.untyped_storage().data_ptr() != self._memory:
            return 0
        view = tensor.shape, tensor.stride(), tensor.storage_offset()
        return len(self._places.as_strided(*view).unique())

    def _count(self, made: list[Tensor]) -> None:
        for one in made:
            memory = one.untyped_storage()
            place = memory.data_ptr()
            if not self._alive[place]:
                self._held += memory.nbytes() // one.element_size()
            self._alive[place] += 1
            weakref.finalize(one, self._gone, place, memory.nbytes() // one.element_size()).atexit = False
        self.numbers = max(self.numbers, self._held)

    def _gone(self, place: int, numbers: int) -> None:
        self._alive[place] -= 1
        if not self._alive[place]:
            self._held -= numbers


def exercise(name: str, test: Callable[[], object], hint: str) -> bool:
    """Run `test`, print "NAME: pass", or the first reason why not and the hint. Only Ctrl-C is raised.

    `test` raises, or returns something false, if the answer is wrong. What it returns may be nothing, a Python,
    NumPy or torch truth value or number, or an array, list or tuple of them, in which all must be true. Nothing to
    compare, a nan, and what is neither true nor false (`...`, `NotImplemented`, a text, a function) are no pass.
    Returns whether it passed.
    """
    try:
        reason = _fault(test())
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # `exit()` in an answer too
        reason = _told(error)
    if reason:
        print(f"{name}: not yet. {_shortened(reason)}\n  Hint: {hint}")
    else:
        print(f"{name}: pass")
    return not reason


def _told(error: BaseException) -> str:
    """An exception's kind and words; the kind alone where it has no words, or cannot say them."""
    try:
        words = str(error)
    except Exception:
        words = ""
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _shortened(reason: str) -> str:
    """The first line, cut to LONGEST characters, as any stream of UTF-8 can print it."""
    line = reason.splitlines()[0]
    line = line if len(line) <= LONGEST else f"{line[: LONGEST - 2]} …"
    return line.encode("utf-8", "backslashreplace").decode("utf-8")


def _fault(answer: object) -> str:
    """Why what a check gave back is no pass; "" where it is one."""
    if answer is None:
        return ""
    if isinstance(answer, list | tuple):
        faults = [_fault(part) for part in answer]
        right = np.array([not fault for fault in faults])
        if right.any() or not faults:
            return _places(right)
        return faults[0]
    if isinstance(answer, Tensor):
        right, unknown = (answer != 0).cpu().numpy(), bool(answer.isnan().any())
    else:
        values = np.asarray(answer)
        if values.dtype.kind not in "biufc":
            return f"the check gave back {answer!r}, which is neither true nor false"
        right, unknown = values != 0, bool((values != values).any())
    return "the result is nan" if unknown else _places(right)


def _places(right: np.ndarray) -> str:
    if not right.size:
        return "nothing was compared: the result is empty"
    if right.all():
        return ""
    return "the result is the expected one only in some places" if right.any() else "the result is not the expected one"
