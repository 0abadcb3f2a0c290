"""Checks for notebook cells, with messages that teach. All raise AssertionError, except `exercise`, which prints."""

from collections.abc import Callable

import torch
from torch import Tensor


def check_shape(tensor: Tensor, expected: tuple[int, ...], meaning: str = "") -> None:
    """Hold that `tensor` has exactly the shape `expected`; `meaning` names the axes, as in "B T D"."""
    got = tuple(tensor.shape)
    names = f" ({meaning})" if meaning else ""
    assert got == tuple(expected), f"expected shape {tuple(expected)}{names}, got {got}"


def check_close(got: Tensor, expected: Tensor, tol: float = 1e-5) -> float:
    """Hold that two tensors of one shape differ nowhere by more than `tol`; return the largest difference."""
    check_shape(got, tuple(expected.shape))
    difference = (got.detach().double() - expected.detach().double()).abs().max().item()
    assert difference <= tol, f"largest difference {difference:.2e}, allowed {tol:.0e}: the two do not compute the same"
    return difference


def check_rows_sum_to_one(attn: Tensor, tol: float = 1e-5) -> None:
    """Hold that attention weights sum to 1 over the last axis, the keys."""
    off = (attn.detach().sum(dim=-1) - 1).abs().max().item()
    assert off <= tol, f"rows sum to 1 within {off:.1e}, not {tol:.0e}: the softmax must run over the keys, dim=-1"


def count_parameters(module: torch.nn.Module) -> int:
    """Count the trainable numbers in a module."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def exercise(name: str, test: Callable[[], object], hint: str) -> bool:
    """Run `test`, print "NAME: pass", or the first reason why not and the hint. Never raises.

    `test` raises, or returns False, where the answer is wrong; an answer left as `None` or `...` is not yet one.
    Returns whether it passed.
    """
    try:
        passed, reason = test() is not False, "the result is not the expected one"
    except Exception as error:
        passed, reason = False, f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if passed:
        print(f"{name}: pass")
    else:
        print(f"{name}: not yet. {reason.splitlines()[0]}\n  Hint: {hint}")
    return passed
