"""What the study of distillation builds on: its images, and teachers whose answers for every view are looked up."""

from dataclasses import replace
from functools import lru_cache

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from studies.data_scale import AUGMENT, CNN_WIDTHS, FLIPS, HELD_OUT
from studies.shared import IMAGENET, IMAGENET_SIDE, Enlarged, fashion_or_cifar, unwatched
from vitutils import train
from vitutils.analysis.classifier import without_classifier
from vitutils.data import Dataset
from vitutils.models import SmallCNN, weights

RECIPE = train.Recipe(batch_size=128, warmup=0.1, clip_grad=1.0, augment=AUGMENT[FLIPS])
TEACHER_RECIPE = replace(RECIPE, batch_size=64)
SEARCH_SEED = 100
PROBED = 20_000  # images for the linear head of the net from ImageNet


@lru_cache(maxsize=2)
def whole_set(images: int | None) -> Dataset:
    """Fashion-MNIST on 32 x 32; at smoke scale its first images alone."""
    whole = fashion_or_cifar("fashion_mnist")
    return whole if images is None else whole.take(train=images)


def make_data(whole: Dataset, images: int, part: str, seed: int) -> Dataset:
    """The images of a run; its other part is held-out images in the search, test images else, as in chapter 7."""
    count = len(whole.train_labels)
    if part != "search" and images == count:
        return whole
    chosen = whole.hold_out(min(HELD_OUT, count // 4))
    drawn = chosen.take(train=min(images, len(chosen.train_labels)), seed=seed)
    if part == "search":
        return drawn
    return replace(drawn, test_images=whole.test_images, test_labels=whole.test_labels)


def key_of(image: Tensor) -> int:
    """A number that tells a uint8 image from all others."""
    return hash(image.numpy().tobytes())


@lru_cache(maxsize=1)
def places(count: int | None) -> dict[int, int]:
    """Where each view of each training image stands: image i at 2 i, its mirror image at 2 i + 1."""
    images = whole_set(count).train_images
    found = {}
    for i, (image, mirrored) in enumerate(zip(images, images.flip(3).contiguous(), strict=True)):
        found.setdefault(key_of(image), 2 * i)
        found.setdefault(key_of(mirrored), 2 * i + 1)
    return found


class Looked(nn.Module):
    """A teacher that has answered all views before: normalised images (B, 1, 32, 32) -> its logits (B, K).

    views: (2 N, K). Raises KeyError for an image that is no view of a training image.
    """

    def __init__(self, views: Tensor, count: int | None, mean: Tensor, std: Tensor):
        super().__init__()
        self.views, self.places = views, places(count)
        self.scale, self.offset = 255 * std.view(-1, 1, 1), 255 * mean.view(-1, 1, 1)

    def rows(self, images: Tensor) -> list[int]:
        pixels = (images * self.scale + self.offset).round().byte().contiguous()
        return [self.places[key_of(image)] for image in pixels]

    def forward(self, images: Tensor) -> Tensor:
        return self.views[self.rows(images)]


def logits_of(model: nn.Module, images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Logits (N, K) for uint8 images."""
    labels = torch.zeros(len(images), dtype=torch.int64)
    return train.evaluate(model, images, labels, mean=mean, std=std).logits


class Cropped(nn.Module):
    """The pocket ViT looks at the inner 28 x 28 pixels."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images[..., 2:30, 2:30])


def make_teacher(name: dict, whole: Dataset, passes: dict) -> tuple[nn.Module, Dataset, Tensor, Tensor, slice]:
    """Make a teacher: the net, the images it learned, the mean and std that it wants, the pixels that it looks at.

    passes: of the CNN over its images, by the number of them.
    """
    everything = slice(None)
    if name["teacher"] == "vit":
        pocket = weights.load_pretrained("pocket")
        return pocket.model, whole, torch.tensor(pocket.mean), torch.tensor(pocket.std), slice(2, 30)
    if name["teacher"] == "imagenet":
        net = weights.load_pretrained(IMAGENET).model
        half = torch.tensor([0.5])
        part = whole.take(train=min(PROBED, len(whole.train_labels)))
        x = logits_of(Enlarged(without_classifier(net), IMAGENET_SIDE), part.train_images, half, half)
        probe = LogisticRegression(C=0.1, max_iter=3_000).fit(x.numpy(), part.train_labels.numpy())
        net.head = nn.Linear(net.config.embed_dim, whole.num_classes)
        with torch.no_grad():
            net.head.weight.copy_(torch.from_numpy(probe.coef_))
            net.head.bias.copy_(torch.from_numpy(probe.intercept_))
        return Enlarged(net, IMAGENET_SIDE), whole, half, half, everything
    part = "search" if name["seed"] == SEARCH_SEED else "main"
    dataset = make_data(whole, name["images"], part, name["seed"])
    how = {field: name[field] for field in ("lr", "weight_decay", "seed")}
    torch.manual_seed(name["seed"])
    model = SmallCNN(1, whole.num_classes, CNN_WIDTHS["cnn"]).to(memory_format=torch.channels_last)
    train.fit(model, unwatched(dataset), replace(TEACHER_RECIPE, epochs=passes[name["images"]], **how))
    return model, dataset, dataset.mean, dataset.std, everything
