"""Grids of features: scenes whose every pixel is known, colours, foreground, a class for each pixel."""

import pytest
import torch

from vitutils import data
from vitutils.analysis import dense
from vitutils.data.scenes import coverage, scenes
from vitutils.models.backbones import load_backbone


@pytest.mark.parametrize("start", [0, 60])
def test_a_shape_covers_what_differs_from_the_plain_ground(start):
    drawn = data.shapes(70, 3, 32, background="plain", start=start)
    inside = coverage(drawn, 3, start)
    ground = drawn.images[:, :, :1, :1].int()  # its middle lies outside of every shape that keeps clear of the corner
    clear = (drawn.centres - 0.5).norm(dim=1) > drawn.radii + 1
    differs = (drawn.images.int() - ground).abs().amax(dim=1)
    assert clear.sum() > 50
    assert (differs[clear][inside[clear] == 0] == 0).all()
    assert (differs[clear][inside[clear] > 0.5] > 10).all()


def test_scenes_are_the_same_however_many_are_drawn_and_the_last_shape_is_on_top():
    some, more = scenes(3, 5, 48), scenes(80, 5, 48)
    assert torch.equal(some.images, more.images[:3]) and torch.equal(some.masks, more.masks[:3])
    assert more.classes[0] == "ground" and more.masks.unique().tolist() == [0, 1, 2, 3, 4]
    last = data.shapes(80, 5 * 3 + 2, 48, scale=(0.14, 0.24), classes=more.classes[1:])
    inside = coverage(last, 5 * 3 + 2) >= 0.5
    assert torch.equal(more.masks[inside], (last.labels[:, None, None] + 1).expand(inside.shape)[inside])
    assert not torch.equal(scenes(3, 6, 48).images, some.images)


def test_a_scene_needs_a_shape():
    with pytest.raises(ValueError, match="1 shape a scene or more"):
        scenes(2, 0, count=0)


def test_a_grid_is_the_same_in_batches():
    backbone = load_backbone("pocket")
    images = torch.randn(5, *backbone.input_size, generator=torch.Generator().manual_seed(0))
    whole = dense.grids(backbone, images)
    assert torch.allclose(whole, dense.grids(backbone, images, batch_size=2), atol=1e-6)
    assert whole.shape[:3] == (5, 7, 7) and not whole.requires_grad


def test_like_places_have_like_colours_in_every_image():
    kinds = torch.randint(4, (2, 6, 6), generator=torch.Generator().manual_seed(0))
    directions = torch.eye(8)[:4] * torch.tensor([[4.0], [3.0], [2.0], [1.0]])
    found = dense.pca_colours(directions[kinds]).permute(0, 2, 3, 1)
    assert found.shape == (2, 6, 6, 3) and 0 <= found.min() and found.max() <= 1
    means = torch.stack([found[kinds == k].mean(0) for k in range(4)])
    assert all(found[kinds == k].std(0).max() < 1e-4 for k in range(4))
    assert torch.cdist(means, means)[~torch.eye(4, dtype=torch.bool)].min() > 0.2


@pytest.mark.parametrize("shape", [(1, 1, 3, 8), (1, 4, 4, 2)])
def test_colours_need_places_and_features(shape):
    with pytest.raises(ValueError, match="four places or more"):
        dense.pca_colours(torch.zeros(shape))


def test_a_place_has_the_commonest_class_of_its_pixels():
    masks = torch.zeros(1, 4, 6, dtype=torch.int64)
    masks[0, :2, :3] = torch.tensor([[2, 2, 1], [2, 2, 0]])
    masks[0, 3, 5] = 2
    assert dense.patch_labels(masks, (2, 2)).tolist() == [[[2, 0], [0, 0]]]
    with pytest.raises(ValueError, match="divides masks of 4 x 6"):
        dense.patch_labels(masks, (3, 2))


def known(seed: int, count: int = 6):
    """Masks, and grids whose features tell the class of each place."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(3, (count, 4, 4), generator=generator)
    grid = 3 * torch.eye(5)[cells] + 0.3 * torch.randn(count, 4, 4, 5, generator=generator)
    return grid, cells.repeat_interleave(4, 1).repeat_interleave(4, 2), cells


def test_foreground_is_where_similar_places_were_foreground():
    grid, _, cells = known(0)
    votes = dense.foreground(grid[:3], cells[:3] > 0, grid[3:])
    assert torch.equal(votes > 0.5, cells[3:] > 0)
    with pytest.raises(ValueError, match="one kind alone"):
        dense.foreground(grid, torch.ones(6, 4, 4, dtype=torch.bool), grid)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_linear_head_finds_the_class_of_every_pixel(classes):
    grid, masks, _ = known(1)
    masks = masks.clamp(max=classes - 1)
    head = dense.fit_segmenter(grid[:3], masks[:3])
    found = dense.segment(head, grid[3:], (16, 16))
    assert found.shape == masks[3:].shape
    middle = (..., slice(1, None, 4), slice(1, None, 4))
    assert (found[middle] == masks[3:][middle]).double().mean() > 0.9
    assert dense.mean_iou(masks[3:], found) > 0.6


def test_classes_keep_their_numbers_where_one_was_never_seen():
    grid, masks, _ = known(2)
    head = dense.fit_segmenter(grid, masks * 2)
    assert set(dense.segment(head, grid, (16, 16)).unique().tolist()) == {0, 2, 4}


def test_iou_by_hand():
    truth, answers = torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 1, 1, 1]]])
    assert dense.mean_iou(truth, answers) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert dense.mean_iou(truth, truth) == 1
    with pytest.raises(ValueError, match="a class for each pixel"):
        dense.mean_iou(truth, answers[..., :2])
