"""Train and eval mode: every module's own comes back, whatever it is and whatever happens."""

import pytest
import torch
from torch import nn

from vitutils.analysis.features import extract_features
from vitutils.data.images import from_tensors
from vitutils.models import eval_mode, modes_kept, own_modes, set_modes


class Merging(nn.Linear):
    """Adds a second matrix into its weight in eval mode and takes it out again in train mode, as LoRA layers do."""

    def __init__(self):
        super().__init__(4, 4)
        self.more, self.merged = nn.Parameter(torch.ones(4, 4)), False

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            self.weight.data += self.more.data * (-1 if mode else 1)
            self.merged = not mode
        return self


def net() -> nn.Sequential:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Sequential(Merging(), nn.Dropout(0.5)), nn.BatchNorm1d(4))
    model[0].eval()
    model[1].eval()
    model[1][1].train()  # in train mode, in a part in eval mode, in a net in train mode
    return model


def test_every_modules_own_mode_comes_back():
    model = net()
    modes, weight = [*own_modes(model).values()], model[1][0].weight.clone()
    assert modes == [True, False, False, False, True, True]
    with eval_mode(model):
        assert not any(module.training for module in model.modules())
        with eval_mode(model):
            pass
        assert not any(module.training for module in model.modules())
    assert [*own_modes(model).values()] == modes
    assert torch.equal(model[1][0].weight, weight) and model[1][0].merged
    with pytest.raises(KeyError), modes_kept(model):
        model.train()
        assert not model[1][0].merged
        raise KeyError
    assert [*own_modes(model).values()] == modes and model[1][0].merged


def test_a_module_that_stands_in_two_places_and_one_that_is_new_are_no_trouble():
    shared = nn.Dropout().eval()
    model = nn.Sequential(nn.Sequential(shared), nn.Sequential(shared, nn.Dropout()))
    with eval_mode(model):
        model.append(nn.Dropout())
    assert not shared.training and model[1][1].training and model[1].training
    set_modes({model: False})
    assert not model.training and not model[1].training


class Table(nn.Module):
    """Features of images, times a table that it makes at its first batch."""

    table = None

    def forward(self, images):
        if self.table is None:
            self.table = torch.linspace(0, 1, images[0].numel())
        return images.flatten(1) * self.table


def test_features_leave_a_net_that_can_be_trained_in_its_own_modes():
    images, labels = torch.randint(255, (6, 1, 8, 8), dtype=torch.uint8), torch.arange(6) % 2
    part = from_tensors("made", "train", images, labels, ["a", "b"], "here")
    model = nn.Sequential(nn.BatchNorm2d(1), Table())
    model[0].eval()
    extract_features(model, part, lambda image: image / 255, cache=False)
    assert [*own_modes(model).values()] == [True, False, True] and not model[1].table.is_inference()
    model(torch.randn(2, 1, 8, 8, requires_grad=True)).sum().backward()

    def broken(image):
        raise OSError("no image")

    with pytest.raises(OSError, match="no image"):
        extract_features(model, part, broken, cache=False)
    assert [*own_modes(model).values()] == [True, False, True]
