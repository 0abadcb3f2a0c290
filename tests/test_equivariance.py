"""Shifts, what layers make of them, and the nets and the task that chapter 1 measures them with."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vitutils import data
from vitutils.analysis.equivariance import accuracy_under_shift, equivariance_error, output_change, shift
from vitutils.check import check_close, check_shape, count_parameters
from vitutils.data.synthetic import two_blobs
from vitutils.models import BlurPool, ConvStack, LocallyConnected, PixelMLP, SmallCNN, blur_pooling


@pytest.fixture
def pictures():
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))


# --- shift ---


def test_shift_moves_right_and_down_and_zeros_come_in():
    image = torch.arange(1, 13).reshape(1, 3, 4)
    assert shift(image, 1).tolist() == [[[0, 1, 2, 3], [0, 5, 6, 7], [0, 9, 10, 11]]]
    assert shift(image, -2).tolist() == [[[3, 4, 0, 0], [7, 8, 0, 0], [11, 12, 0, 0]]]
    assert shift(image, 0, 1).tolist() == [[[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]]]
    assert shift(image, 1, -1).tolist() == [[[0, 5, 6, 7], [0, 9, 10, 11], [0, 0, 0, 0]]]


def test_shift_by_nothing_by_everything_and_back(pictures):
    assert torch.equal(shift(pictures, 0), pictures) and shift(pictures, 0) is not pictures
    assert not shift(pictures, 48).any() and not shift(pictures, 0, -100).any()
    there_and_back = shift(shift(pictures, 5, -3), -5, 3)
    assert torch.equal(there_and_back[..., 3:, :-5], pictures[..., 3:, :-5])
    assert not there_and_back[..., -5:].any()


def test_shift_keeps_the_dtype_and_refuses_half_pixels():
    bytes_ = torch.full((2, 1, 4, 4), 7, dtype=torch.uint8)
    assert shift(bytes_, 1).dtype == torch.uint8
    with pytest.raises(ValueError, match=r"whole numbers.*\(0\.5, 0\)"):
        shift(bytes_, 0.5)
    with pytest.raises(ValueError, match="shape"):
        shift(torch.zeros(4), 1)


# --- equivariance ---


@pytest.mark.parametrize("direction", ["right", "left", "down", "up"])
def test_a_convolution_is_equivariant_at_every_shift(pictures, direction):
    error = equivariance_error(nn.Conv2d(3, 4, 3, padding=1), pictures, range(7), direction=direction)
    check_shape(error, (7,))
    assert error.max() < 1e-5


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, 3, padding=1, stride=2),
        nn.MaxPool2d(2),
        BlurPool(),
        nn.Sequential(nn.MaxPool2d(2, stride=1), BlurPool()),
    ],
    ids=["stride", "max", "blur", "max and blur"],
)
def test_leaving_places_out_is_exact_at_multiples_of_the_stride_alone(pictures, layer):
    error = equivariance_error(layer, pictures, range(-4, 5))
    assert error[::2].max() < 1e-5 < 0.02 < error[1::2].min()


def test_the_error_is_the_one_of_the_formula(pictures):
    layer = nn.Conv2d(3, 4, 3, padding=1, stride=2, bias=False)
    got = equivariance_error(layer, pictures, [3], border=7)[0]
    with torch.no_grad():
        still, moved = layer(pictures), layer(shift(pictures, 3))
    inside = (..., slice(5, -5), slice(5, -5))  # (7 + 3) / 2
    gaps = [(moved[inside] - shift(still, n)[inside]).norm() / still[inside].norm() for n in (1, 2)]
    assert math.isclose(got, min(gaps), rel_tol=1e-5)


def test_a_low_pass_filter_lessens_the_error_on_photos():
    photos = data.normalise(torch.stack(list(data.photos(64).values())))
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    before = equivariance_error(plain, photos, [1])
    assert equivariance_error(blur_pooling(plain), photos, [1]) < before


def test_weights_that_differ_from_place_to_place_are_not_equivariant(pictures):
    layer = LocallyConnected(3, 2, (48, 48))
    assert equivariance_error(layer, pictures, [1])[0] > 0.5


def test_no_gradients_no_mode_is_changed_and_batch_norm_learns_nothing(pictures):
    layer = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5))
    layer[2].eval()
    error = equivariance_error(layer, pictures, [0, 2])
    assert error.max() < 1e-5 and not error.requires_grad
    assert [m.training for m in layer] == [True, True, False] and layer.training
    assert not layer[1].running_mean.any()


def test_bad_input_is_named(pictures):
    conv = nn.Conv2d(3, 4, 3, padding=1)
    with pytest.raises(ValueError, match="right, left, down, up, got 'east'"):
        equivariance_error(conv, pictures, [1], direction="east")
    with pytest.raises(ValueError, match="nothing is left inside"):
        equivariance_error(conv, pictures, [17])
    with pytest.raises(ValueError, match="at least one shift"):
        equivariance_error(conv, pictures, [])
    with pytest.raises(ValueError, match=r"\(B, C, H, W\), got \(3, 48, 48\)"):
        equivariance_error(conv, pictures[0], [1])
    with pytest.raises(ValueError, match="divide"):
        equivariance_error(nn.Conv2d(3, 4, 3), pictures, [1])  # no padding: 46 of 48
    with pytest.raises(ValueError, match="divide"):
        equivariance_error(nn.Flatten(), pictures, [1])
    with pytest.raises(TypeError, match="returns one tensor, got tuple"):
        output_change(Two(), pictures, [1])


class Two(nn.Module):
    def forward(self, images):
        return images, images


# --- what comes out at the end ---


def test_a_mean_over_places_is_invariant_until_the_border_and_an_mlp_is_not():
    torch.manual_seed(0)
    images = F.pad(torch.rand(3, 1, 12, 12), (10, 10, 10, 10))
    stack = ConvStack(1, 4, 8, (1, 1, 1))
    change = output_change(stack, images, [0, 1, 7, 10])
    assert change[:3].max() < 1e-5 < change[3]  # three layers: 10 - 3 pixels of margin
    assert output_change(PixelMLP(1024, 4, (16,)), images, [1])[0] > 1e-2
    with pytest.raises(ValueError, match=r"\(B, K\), got shape"):
        output_change(nn.Conv2d(1, 1, 3), images, [1])


class SeesTheLeft(nn.Module):
    """Class 1 where the left half is the brighter one."""

    def forward(self, images):
        left, right = images.mean(dim=1).chunk(2, dim=-1)
        left, right = left.mean(dim=(1, 2)), right.mean(dim=(1, 2))
        return torch.stack([right, left], dim=1)


def test_accuracy_under_shift_of_a_model_whose_answers_are_known():
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    images[..., 3:5, 1:3] = 200  # a blob at the left
    labels = torch.ones(4, dtype=torch.int64)
    model = SeesTheLeft().train()
    found = accuracy_under_shift(model, images, labels, [0, 1, 4], mean=0.1, std=0.3)
    assert found.tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]] and model.training
    one = accuracy_under_shift(model, images, labels, [4], mean=0.1, std=0.3, directions=["down"])
    assert one.tolist() == [[1]]


def test_accuracy_under_shift_moves_along_one_axis_and_normalises_after():
    images = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8)
    seen = []

    class Keeps(SeesTheLeft):
        def forward(self, images):
            seen.append(images.clone())
            return super().forward(images)

    accuracy_under_shift(Keeps(), images, torch.zeros(1, dtype=torch.int64), [0, 3], mean=0.1, std=0.3)
    expected = [(0, 0), (3, 0), (0, 0), (-3, 0), (0, 0), (0, 3), (0, 0), (0, -3)]
    for got, (dx, dy) in zip(seen, expected, strict=True):
        check_close(got, data.normalise(shift(images, dx, dy), 0.1, 0.3))


def test_accuracy_under_shift_names_bad_input():
    images, labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="got 'north'"):
        accuracy_under_shift(SeesTheLeft(), images, labels, [0], mean=0, std=1, directions=["north"])
    with pytest.raises(ValueError, match="got 0 and 4"):
        accuracy_under_shift(SeesTheLeft(), images, labels, [], mean=0, std=1)
    with pytest.raises(ValueError):
        accuracy_under_shift(SeesTheLeft(), images, labels[:3], [0], mean=0, std=1)


# --- the nets ---


def test_a_locally_connected_layer_with_equal_filters_is_a_convolution(pictures):
    conv, local = nn.Conv2d(3, 5, 3, padding=1), LocallyConnected(3, 5, (48, 48))
    with torch.no_grad():
        local.weight.copy_(conv.weight.reshape(1, 5, 27))
        local.bias.copy_(conv.bias[:, None])
    check_close(local(pictures), conv(pictures))
    assert count_parameters(local) == 48 * 48 * 5 * 28


def test_a_locally_connected_filter_acts_at_its_own_place(pictures):
    local = LocallyConnected(3, 5, (48, 48))
    before = local(pictures)
    with torch.no_grad():
        local.weight[48 + 7] += 1  # row 1, column 7
    changed = (local(pictures) - before).abs().sum(dim=(0, 1)) > 0
    assert changed.nonzero().tolist() == [[1, 7]]


def test_blur_pool_is_the_binomial_filter(pictures):
    out = BlurPool()(pictures)
    check_shape(out, (2, 3, 24, 24))
    weights = torch.tensor([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    expected = (pictures[:, :, 9:12, 19:22] * weights).sum(dim=(2, 3))
    check_close(out[:, :, 5, 10], expected)
    assert not list(BlurPool().parameters())


def test_blur_pooling_replaces_every_max_pooling_and_keeps_the_sizes():
    net = SmallCNN(1, 10, (4, 8, 8))
    state, out = net.stages[0].weight, net.stages(torch.zeros(1, 1, 32, 32)).shape
    assert blur_pooling(net) is net and net.stages[0].weight is state
    assert sum(isinstance(m, BlurPool) for m in net.modules()) == 3
    assert all(m.stride == 1 for m in net.modules() if isinstance(m, nn.MaxPool2d))
    assert net.stages(torch.zeros(1, 1, 32, 32)).shape == out


@pytest.mark.parametrize(("dilations", "side"), [((1,), 3), ((1, 1, 1, 1), 9), ((1, 2, 4), 15)])
def test_a_conv_stack_sees_as_far_as_its_dilations_say(dilations, side):
    torch.manual_seed(0)
    stack = ConvStack(1, 2, 8, dilations).eval()
    pixels = torch.randn(4, 1, 21, 21, requires_grad=True)
    stack.layers(pixels)[..., 10, 10].sum().backward()
    seen = pixels.grad.abs().sum((0, 1)) > 0
    assert seen.any(dim=0).sum() == side == 1 + 2 * sum(dilations)
    check_shape(stack(pixels), (4, 2))


def test_pixel_mlp_shapes_and_count():
    net = PixelMLP(3 * 4 * 4, 5, (7, 6))
    check_shape(net(torch.zeros(2, 3, 4, 4)), (2, 5))
    assert count_parameters(net) == 48 * 7 + 7 + 7 * 6 + 6 + 6 * 5 + 5
    no_hidden = PixelMLP(48, 5, ())
    assert count_parameters(no_hidden) == 48 * 5 + 5


# --- the task ---


def test_blobs_are_what_their_labels_say():
    distances = [2, 7, 29]
    images, labels, apart = two_blobs(600, distances, seed=3)
    assert images.dtype == torch.uint8 and images.shape == (600, 3, 6, 36)
    for image, label, distance in zip(images, labels, apart, strict=True):
        lit = image.any(dim=0)  # (H, W)
        rows, columns = lit.any(dim=1).nonzero()[:, 0], lit.any(dim=0).nonzero()[:, 0]
        assert lit.sum() == 18 and len(rows) == 3 and rows[-1] - rows[0] == 2
        start = columns[0].item()
        other = start + 2 + distance.item()
        assert columns.tolist() == [*range(start, start + 3), *range(other, other + 3)]
        colours = image[:, rows[0], start], image[:, rows[0], other]
        assert torch.equal(*colours) == bool(label)


def test_blobs_are_in_balance_and_reproducible():
    distances = [2, 4, 8, 16]
    images, labels, apart = two_blobs(1600, distances, seed=0)
    for distance in distances:
        assert labels[apart == distance].double().mean() == 0.5 and (apart == distance).sum() == 400
    assert torch.equal(images, two_blobs(1600, distances, seed=0)[0])
    assert not torch.equal(images, two_blobs(1600, distances, seed=1)[0])
    brightness = [images[labels == label].double().mean(dim=(0, 2, 3)) for label in (0, 1)]
    assert (brightness[0] / brightness[1] - 1).abs().max() < 0.1  # no colour gives the answer away


def test_blobs_fill_their_room_and_no_more():
    images, _, apart = two_blobs(400, [1, 31], seed=0)
    lit = images.amax(dim=1) > 0
    assert (lit.sum((1, 2)) == 18).all() and set(apart.tolist()) == {1, 31}
    for wrong, message in (
        ((10, [32], 0), "whole distances from 1 to 31, got 6 x 36, .32."),
        ((10, [2, 0], 0), "got 6 x 36, .0."),
        ((10, [-3], 0), "whole distances"),
        ((10, [2.5], 0), "whole distances"),
        ((10, [2], 0, (2, 36)), "H of 3 or more"),
        ((10, [2], 0, (6, 6)), "from 1 to 1, got 6 x 6"),
        ((10, [], 0), "one distance or more"),
        ((0, [2], 0), "one image or more"),
    ):
        with pytest.raises(ValueError, match=message):
            two_blobs(*wrong)


def test_beyond_its_reach_a_stack_adds_up_what_it_sees_of_each_blob():
    """The argument of chapter 1: with a linear head on the mean, the two blobs' parts add."""
    torch.manual_seed(0)
    stack = ConvStack(3, 2, 8, (1, 1)).double().eval()
    for m in stack.modules():  # weights and statistics as after training
        if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d):
            m.running_mean.normal_()
            nn.init.normal_(m.bias)

    def logits(first, second, distance):
        image = torch.zeros(1, 3, 6, 36, dtype=torch.float64)
        image[0, first, 2:5, 4:7] = 1
        image[0, second, 2:5, 6 + distance : 9 + distance] = 1
        with torch.no_grad():
            return stack(image)

    def interaction(distance):
        same = logits(0, 0, distance) + logits(1, 1, distance)
        return (same - logits(0, 1, distance) - logits(1, 0, distance)).abs().max()

    assert interaction(5) < 1e-12 < 1e-7 < interaction(4)  # two layers reach 2 * 2
