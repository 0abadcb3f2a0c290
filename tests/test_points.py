"""Layers for point clouds: what each keeps, what it sees, and the networks made of them."""

import math

import pytest
import torch
from torch import nn

from vitutils import check, plot
from vitutils.data.clouds import cloud_batches, half, turn
from vitutils.models.points import (
    CloudTransform,
    NeighbourEmbed,
    OffsetAttention,
    PointClassifier,
    PointMLP,
    VectorAttention,
    bilinear,
    nearest,
    of_neighbours,
    splat,
)

B, N, D, K, k = 2, 24, 16, 5, 6
LAYERS = {"mlp": PointMLP, "global": OffsetAttention, "local": VectorAttention, "splat": CloudTransform}
each_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


def cloud(seed: int = 0, points: int = N) -> torch.Tensor:
    """Points on a bent sheet, in double precision, so that rounding is told from a fault."""
    flat = torch.rand(B, points, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    return torch.cat([flat, (flat**2).sum(-1, keepdim=True) / 2], dim=2)


def tokens_of(points: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(7)
    return nn.Linear(3, D).double()(points).detach().sin()


def made(layer, **how) -> nn.Module:
    """A layer, or a classifier of it with a head that is not zero."""
    torch.manual_seed(1)
    if not how:
        return layer(D).double()
    net = PointClassifier(layer, D, K, **how).double()
    nn.init.normal_(net.head.weight)
    return net


def turned(points: torch.Tensor, degrees: float) -> torch.Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return points @ torch.tensor([[c, s, 0], [-s, c, 0], [0, 0, 1]], dtype=points.dtype)


# --- neighbours ---


def test_the_nearest_are_those_of_a_sorted_table_of_distances():
    points = cloud()
    near = nearest(points, k)
    for b in range(B):
        for i in range(N):
            distances = [math.dist(points[b, i].tolist(), p.tolist()) for p in points[b]]
            assert near[b, i].tolist() == sorted(range(N), key=distances.__getitem__)[:k]
    assert torch.equal(near[:, :, 0], torch.arange(N).expand(B, N))


def test_a_point_is_its_own_nearest_far_from_the_origin():
    """With distances from products, a cloud at 1,000 has its points mixed up."""
    points = (cloud(points=64) + 1_000).float()
    assert torch.equal(nearest(points, 1)[..., 0], torch.arange(64).expand(B, 64))


@pytest.mark.parametrize("count", [0, N + 1])
def test_so_many_neighbours_there_are_not(count):
    with pytest.raises(ValueError, match=f"1 to {N} points, got {count}"):
        nearest(cloud(), count)


def test_neighbours_have_the_rows_of_their_own_cloud():
    points, near = cloud(), nearest(cloud(), k)
    got = of_neighbours(points, near)
    for b, i, j in ((0, 0, 0), (0, 5, 3), (1, N - 1, k - 1)):
        assert torch.equal(got[b, i, j], points[b, near[b, i, j]])


# --- layers ---


@each_layer
def test_a_layer_is_permutation_equivariant_and_the_answer_invariant(layer):
    points, order = cloud(), torch.randperm(N, generator=torch.Generator().manual_seed(3))
    tokens, net = tokens_of(points), made(layer)
    before = net(tokens, points, nearest(points, k))
    after = net(tokens[:, order], points[:, order], nearest(points[:, order], k))
    check.check_close(after, before[:, order], tol=1e-12)
    assert (before[:, 0] - before[:, 1]).abs().max() > 1e-3  # points are told apart
    whole = made(layer, k=k)
    check.check_close(whole(points[:, order]), whole(points), tol=1e-12)
    assert (whole(points) - whole(cloud(9))).abs().max() > 1e-3


@each_layer
def test_gradients_reach_every_parameter_and_the_points(layer):
    points = cloud().requires_grad_()
    net = made(layer, k=k)
    net(points).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in net.parameters())
    assert points.grad.abs().max() > 0


@each_layer
@pytest.mark.parametrize("points", [8, 50])
def test_a_network_takes_any_number_of_points(layer, points):
    check.check_shape(made(layer, k=k)(cloud(points=points)), (B, K))


@each_layer
def test_the_first_loss_is_that_of_a_guess(layer):
    torch.manual_seed(0)
    logits = PointClassifier(layer, D, K, k=k)(cloud().float())
    assert logits.abs().max() == 0


def test_rows_of_global_attention_sum_to_1_and_columns_before_they_are_divided():
    points = cloud()
    net = made(OffsetAttention)
    _, attn = net(tokens_of(points), points, need_weights=True)
    check.check_rows_sum_to_one(attn, tol=1e-6)
    q, key = net.q(tokens_of(points)), net.k(tokens_of(points))
    columns = (q @ key.transpose(1, 2)).exp()
    columns = columns / columns.sum(dim=1, keepdim=True)
    check.check_close(attn, columns / columns.sum(dim=2, keepdim=True), tol=1e-6)


def test_global_attention_hands_on_the_token_less_the_mean_of_the_values():
    points, net = cloud(), made(OffsetAttention)
    tokens = tokens_of(points)
    out, attn = net(tokens, points, need_weights=True)
    check.check_close(out, nn.functional.gelu(net.proj(tokens - attn @ net.v(tokens))), tol=1e-12)


def test_a_mean_of_equal_values_is_that_value_whatever_the_bias():
    """So positions as a bias alone tell nothing: all tokens stay equal."""
    points, net = cloud(), OffsetAttention(D, bias=True).double()
    out, attn = net(torch.ones(B, N, D, dtype=torch.float64), points, need_weights=True)
    assert (attn[:, 0] - attn[:, 1]).abs().max() > 1e-3
    check.check_close(out, out[:, :1].expand_as(out), tol=1e-6)


def test_a_bias_makes_near_points_count_more():
    points = cloud()
    tokens = tokens_of(points)
    torch.manual_seed(1)
    plain, biased = OffsetAttention(D).double(), OffsetAttention(D, bias=True).double()
    biased.load_state_dict(plain.state_dict(), strict=False)
    reach = [(net(tokens, points, need_weights=True)[1] * torch.cdist(points, points)).sum(2).mean()
             for net in (plain, biased)]  # fmt: skip
    assert reach[1] < 0.8 * reach[0]


def test_local_attention_is_global_attention_with_a_mask():
    points, net = cloud(), made(VectorAttention)
    tokens, near = tokens_of(points), nearest(points, k)
    everywhere = torch.arange(N).expand(B, N, N)
    mask = torch.zeros(B, N, N, dtype=torch.bool).scatter(2, near, True)
    masked = net(tokens, points, everywhere, mask=mask)
    check.check_close(net(tokens, points, near), masked, tol=1e-12)
    assert (net(tokens, points, everywhere) - masked).abs().max() > 1e-3


def test_local_attention_is_the_papers_equation_written_as_a_loop():
    points, net, i = cloud(), made(VectorAttention), 4
    tokens, near = tokens_of(points), nearest(points, k)
    q, key, v = net.qkv(tokens[0]).chunk(3, dim=1)
    scores, values = [], []
    for j in near[0, i].tolist():
        place = net.place(points[0, i] - points[0, j])
        scores.append(net.score(q[i] - key[j] + place))
        values.append(v[j] + place)
    expected = net.proj((torch.stack(scores).softmax(dim=0) * torch.stack(values)).sum(dim=0))
    check.check_close(net(tokens, points, near)[0, i], expected, tol=1e-12)


def test_every_channel_of_local_attention_has_its_own_weights():
    points = cloud()
    _, attn = made(VectorAttention)(tokens_of(points), points, nearest(points, k), need_weights=True)
    check.check_shape(attn, (B, N, k, D), "B N k D")
    check.check_rows_sum_to_one(attn.transpose(2, 3), tol=1e-12)
    assert (attn[..., 0] - attn[..., 1]).abs().max() > 1e-3


def test_what_moves_with_the_cloud_and_what_does_not():
    """Local attention on what stands around each point is blind to a shift; turned, it is not."""
    points, net = cloud(), made(VectorAttention, k=k, embed=NeighbourEmbed)
    check.check_close(net(points + 5), net(points), tol=1e-10)
    assert (net(turned(points, 40)) - net(points)).abs().max() > 1e-3
    absolute = made(VectorAttention, k=k)
    assert (absolute(points + 5) - absolute(points)).abs().max() > 1e-3
    bias = made(lambda D: OffsetAttention(D, bias=True), k=k, embed=NeighbourEmbed)
    check.check_close(bias(points + 5), bias(points), tol=1e-10)


# --- splatting ---


def places(seed: int = 0) -> torch.Tensor:
    return torch.rand(B, N, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def test_bilinear_weights_are_those_of_the_four_corners():
    G, at = 5, torch.tensor([[-0.375, 0.75]], dtype=torch.float64)  # rows 1.25, column 3.5
    weights = bilinear(at, G).reshape(G, G)
    expected = torch.zeros(G, G, dtype=torch.float64)
    expected[1, 3] = expected[1, 4] = 0.75 / 2
    expected[2, 3] = expected[2, 4] = 0.25 / 2
    check.check_close(weights, expected, tol=1e-12)
    for corner, cell in ((-1.0, 0), (1.0, G * G - 1)):
        assert bilinear(torch.full((2,), corner), G).argmax() == cell
    check.check_rows_sum_to_one(bilinear(places(), G), tol=1e-12)


def test_splat_then_slice_of_equal_values_changes_nothing():
    weights, value = bilinear(places(), 8), torch.tensor([3.0, -2.0], dtype=torch.float64)
    there = splat(value.expand(B, N, 2), weights)
    check.check_close(weights @ there, value.expand(B, N, 2), tol=1e-10)
    assert (there == 0).all(dim=2).any()  # cells that no point reached


def test_one_point_in_a_cell_gets_its_own_value_back_and_two_their_mean():
    at = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [1.0, 1.0]])
    weights = bilinear(at, 4)
    back = weights @ splat(torch.tensor([[1.0], [2.0], [6.0]]), weights)
    check.check_close(back, torch.tensor([[1.0], [4.0], [4.0]]))


def test_gradients_reach_the_predicted_places_and_are_right():
    at = (places() * 0.9).requires_grad_()
    values = torch.randn(B, N, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def moved(at):
        weights = bilinear(at, 6)
        return (weights @ splat(values, weights).sin()).sum()

    assert torch.autograd.gradcheck(moved, (at,))
    moved(at).backward()
    assert (at.grad.abs().sum(dim=2) > 0).all()


def test_heads_of_a_cloud_transform_have_places_of_their_own():
    points = cloud()
    net = made(CloudTransform)
    at = net.places(tokens_of(points), points)
    check.check_shape(at, (B, net.num_heads, N, 2))
    assert at.abs().max() < 1 and (at[:, 0] - at[:, 1]).abs().max() > 1e-2


def test_every_head_of_a_cloud_transform_has_its_own_grid_and_filters():
    points, net, G = cloud(), made(CloudTransform), 8
    tokens, Dh, found = tokens_of(points), D // net.num_heads, []
    at, values = net.places(tokens, points), net.value(tokens)
    for h in range(net.num_heads):
        own = slice(h * Dh, (h + 1) * Dh)
        weights = bilinear(at[:, h], G)
        grid = splat(values[..., own], weights).transpose(1, 2).reshape(B, Dh, G, G)
        grid = nn.functional.conv2d(grid, net.conv.weight[own], net.conv.bias[own], padding=1)
        found.append(weights @ nn.functional.gelu(grid).flatten(2).transpose(1, 2))
    check.check_close(net(tokens, points), net.proj(torch.cat(found, dim=2)), tol=1e-12)


@each_layer
def test_the_frame_adds_each_layer_to_its_tokens_and_keeps_the_largest_features(layer):
    points, net = cloud(), made(layer, k=k)
    near = nearest(points, k)
    tokens = net.embed(points, near)
    for norm, one in zip(net.norms, net.layers, strict=True):
        tokens = tokens + one(norm(tokens), points, near)
    features = nn.functional.gelu(net.widen(net.norm(tokens)))  # (B, N, D')
    check.check_close(net(points), net.head(features.sort(dim=1).values[:, -1]), tol=1e-12)


def test_points_meet_in_cells():
    """What one point holds reaches points that share a cell with it in some head."""
    points, net = cloud(), made(CloudTransform)
    tokens = tokens_of(points)
    other = tokens.clone()
    other[:, 0] += 1
    net.shift.weight.data.zero_()  # places from coordinates alone
    changed = (net(other, points) - net(tokens, points)).abs().amax(dim=2) > 1e-12
    assert changed[:, 0].all() and changed[:, 1:].any()


# --- batches, turns, halves ---


def test_a_turn_keeps_lengths_and_the_axis_and_comes_back():
    points = cloud()
    for axis in range(3):
        moved = turn(points, torch.tensor([30.0, -75.0]), axis)
        check.check_close(moved.norm(dim=2), points.norm(dim=2), tol=1e-12)
        assert torch.equal(moved[..., axis], points[..., axis]) and (moved - points).abs().max() > 0.1
        check.check_close(turn(moved, torch.tensor([-30.0, 75.0]), axis), points, tol=1e-12)
    ahead = torch.tensor([[[1.0, 0.0, 0.5]]])
    check.check_close(turn(ahead, 90), torch.tensor([[[0.0, 1.0, 0.5]]]))


def test_a_half_is_the_outer_one():
    points = cloud()
    for axis, sign in ((0, 1), (2, -1)):
        kept = half(points, axis, sign)
        check.check_shape(kept, (B, N // 2, 3))
        limit = (sign * points[..., axis]).median(dim=1).values
        assert (sign * kept[..., axis] >= limit[:, None]).all()


def marked(clouds: int = 10, points: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Clouds whose every point says in z which cloud it is of; labels say it too."""
    flat = torch.rand(clouds, points, 2, generator=torch.Generator().manual_seed(0))
    number = torch.arange(clouds)
    return torch.cat([flat, 10.0 + 10 * number[:, None, None].expand(-1, points, 1)], dim=2), number


def test_batches_hold_every_cloud_once_an_epoch_with_its_label():
    points, labels = marked()
    batches = cloud_batches(points, labels, 5, 8, seed=0)
    seen = []
    for drawn, truth in (next(batches), next(batches)):
        check.check_shape(drawn, (5, 8, 3))
        height = 10.0 + 10 * truth[:, None]
        stretch = drawn[..., 2] / height
        assert (0.79 < stretch).all() and (stretch < 1.26).all()
        assert (drawn[..., 0].std(dim=1) > 0.05).all()  # other points, not one many times
        seen += truth.tolist()
    assert sorted(seen) == list(range(10))


def test_batches_are_the_seeds_and_differ_from_epoch_to_epoch():
    points, labels = marked()
    one, same, other = (cloud_batches(points, labels, 10, 8, seed=seed) for seed in (0, 0, 1))
    first, second = next(one), next(one)
    assert torch.equal(first[0], next(same)[0])
    assert not torch.equal(first[1], second[1]) and not torch.equal(first[0], next(other)[0])


def test_turned_batches_keep_heights_and_turn_each_cloud_by_itself():
    points = torch.tensor([1.0, 0.0, 5.0]).expand(8, 4, 3)
    drawn, _ = next(cloud_batches(points, torch.zeros(8).long(), 8, 4, seed=0, turned=2))
    angles = torch.atan2(drawn[..., 1], drawn[..., 0]).mean(dim=1)
    assert angles.std() > 0.5 and (drawn[..., 2] > 3.5).all()


@pytest.mark.parametrize(("batch", "count"), [(11, 8), (5, 41), (0, 8), (5, 0)])
def test_batches_that_cannot_be_had_are_refused(batch, count):
    with pytest.raises(ValueError, match=f"10 clouds of up to 40 points, got {batch} of {count}"):
        next(cloud_batches(*marked(), batch, count, seed=0))


# --- the figure ---


def test_clouds_are_drawn_from_three_sides_with_z_up():
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]])
    figure = plot.clouds([("plain", points), ("coloured", points, points[:, 0])], mark=[3, 3])
    sides = [ax for ax in figure.axes if ax.collections and ax.get_aspect() == 1]
    assert len(sides) == 6 and [ax.get_title() for ax in sides[:3]] == list(plot.SIDES)
    for ax, place in zip(sides[3:], ([0, 3], [0, 3], [0, 0]), strict=True):
        assert [float(v[0]) for v in ax.lines[0].get_data()] == place
    drawn = sides[3].collections[0]
    assert drawn.get_offsets()[-1].tolist() == [1, 0] and drawn.get_array()[-1] == 1  # the largest value, last
