"""Muon: steps equal to torch's but for its half precision; singular values near 1; matrices alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitutils.training.muon import Muon, orthogonalise

SHAPES = ((24, 8), (8, 8), (8, 24), (8, 8), (24, 8))


def pair(**how):
    """The same parameters twice, under ours and under torch's optimizer."""
    torch.manual_seed(0)
    ours = [nn.Parameter(0.1 * torch.randn(*shape)) for shape in SHAPES]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    return (ours, Muon(ours, **how)), (theirs, torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **how))


@pytest.mark.parametrize("how", [{"lr": 0.02, "weight_decay": 0.05}, {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.5}])
def test_steps_equal_torchs(how):
    (ours, mine), (theirs, torchs) = pair(**how)
    before = [p.detach().clone() for p in ours]
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        mine.step()
        torchs.step()
    for p, q, start in zip(ours, theirs, before, strict=True):
        moved = (q - start).norm()
        assert (p - q).norm() < 0.03 * moved, "torch works in bfloat16, which keeps 3 digits"


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 48, 16), (2, 16, 48)])
def test_singular_values_move_to_near_one(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape) * torch.tensor([1e-3, 1.0, 50.0])[: shape[0], None, None]
    values = torch.linalg.svdvals(orthogonalise(matrices))
    small = torch.linalg.svdvals(matrices)
    assert values.max() < 1.3 and values.median() > 0.65
    assert (small.max(dim=1).values / small.min(dim=1).values).min() > values.max() / values.median()


def test_equal_shapes_do_not_mix():
    (ours, mine), _ = pair()
    for p in ours:
        p.grad = torch.randn_like(p)
    alone = nn.Parameter(ours[3].detach().clone())
    alone.grad = ours[3].grad.clone()
    mine.step()
    Muon([alone]).step()
    torch.testing.assert_close(alone, ours[3])


def test_a_matrix_without_a_gradient_stays():
    (ours, mine), _ = pair()
    ours[0].grad = torch.randn_like(ours[0])
    before = ours[1].detach().clone()
    mine.step()
    assert torch.equal(ours[1], before)


def test_a_closure_is_called_and_its_loss_returned():
    (ours, mine), _ = pair()

    def closure():
        mine.zero_grad()
        loss = ours[0].square().sum()
        loss.backward()
        return loss

    first = mine.step(closure)
    assert mine.step(closure) < first


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), ()])
def test_what_is_no_matrix_is_refused(shape):
    with pytest.raises(ValueError, match="expected matrices, got shape"):
        Muon([nn.Parameter(torch.zeros(shape))])
