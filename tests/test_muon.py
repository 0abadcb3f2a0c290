"""Muon: steps equal to torch's but for its half precision; singular values near 1; matrices alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitutils import train
from vitutils.models import SmallCNN, ViT, ViTConfig
from vitutils.training.muon import Muon, inside, make_optimizers, orthogonalise

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


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_filters_move_as_their_matrix_does(layout):
    torch.manual_seed(0)
    filters = nn.Parameter(torch.randn(8, 4, 3, 3).to(memory_format=layout))
    matrix = nn.Parameter(filters.detach().flatten(1).clone())
    for _ in range(2):
        matrix.grad = torch.randn(8, 36)
        filters.grad = matrix.grad.view(8, 4, 3, 3).to(memory_format=layout)
        Muon([filters]).step()
        Muon([matrix]).step()
    torch.testing.assert_close(filters.flatten(1), matrix)


def names_moved(net: nn.Module) -> list[str]:
    """The parameters that Muon gets, and the check that each parameter of the net has one optimizer."""
    adamw, muon = make_optimizers(net, train.Recipe(muon_lr=0.02))
    kinds = [[p for group in one.param_groups for p in group["params"]] for one in (adamw, muon)]
    assert sorted(map(id, sum(kinds, []))) == sorted(map(id, net.parameters()))
    return [name for name, p in net.named_parameters() if any(p is q for q in kinds[1])]


def test_muon_gets_the_matrices_between_first_layer_and_head():
    sizes = {"embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 10}
    net = ViT(ViTConfig(img_size=8, patch_size=4, in_chans=1, **sizes))
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert names_moved(net) == [f"blocks.0.{part}.weight" for part in parts]
    assert names_moved(SmallCNN(1, 10, (4, 8, 8))) == ["stages.4.weight", "stages.8.weight"]


def test_two_heads_are_heads():
    net = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 10), nn.Linear(16, 10))
    assert [tuple(w.shape) for w in inside([p for p in net.parameters() if p.ndim == 2])] == [(16, 16)]


def test_without_a_rate_for_it_there_is_no_muon():
    [adamw] = make_optimizers(nn.Linear(4, 2), train.Recipe(lr=0.5))
    assert type(adamw) is torch.optim.AdamW and {group["lr"] for group in adamw.param_groups} == {0.5}
    assert "muon_lr" not in train.Recipe().numbers() and train.Recipe(muon_lr=0.1).numbers()["muon_lr"] == 0.1


def test_a_net_without_inner_matrices_is_refused():
    with pytest.raises(ValueError, match="muon_lr: expected weights between the first layer and the head"):
        make_optimizers(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), train.Recipe(muon_lr=0.02))


@pytest.mark.parametrize("shape", [(3,), ()])
def test_what_is_no_matrix_is_refused(shape):
    with pytest.raises(ValueError, match="expected matrices, got shape"):
        Muon([nn.Parameter(torch.zeros(shape))])
