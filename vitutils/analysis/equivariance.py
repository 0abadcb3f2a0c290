"""What a shift of the input does to a layer, to a network's output, and to its accuracy. Works for any `nn.Module`.

A shift by s > 0 moves the content s pixels to the right (or left, down, up); zeros move in from the other side, and
what leaves is lost. Chapter 1 uses these functions on convolutions, later ones on other networks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitutils.models.modes import eval_mode
from vitutils.training.evaluation import evaluate

DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}


def shift(images: Tensor, dx: int, dy: int = 0) -> Tensor:
    """Move images dx pixels to the right and dy down; zeros move in.

    images: (..., H, W), any dtype. Negative numbers move left and up.
    Raises ValueError if dx or dy is not a whole number.
    """
    if images.ndim < 2 or dx != int(dx) or dy != int(dy):
        raise ValueError(
            "expected images (..., H, W) and whole numbers of pixels, got "
            f"shape {tuple(images.shape)} and a shift by ({dx}, {dy})"
        )
    H, W = images.shape[-2:]
    moved = torch.zeros_like(images)
    rows, columns = max(H - abs(int(dy)), 0), max(W - abs(int(dx)), 0)
    to_y, to_x = max(int(dy), 0), max(int(dx), 0)
    from_y, from_x = max(-int(dy), 0), max(-int(dx), 0)
    if rows and columns:
        moved[..., to_y : to_y + rows, to_x : to_x + columns] = images[
            ..., from_y : from_y + rows, from_x : from_x + columns
        ]
    return moved


def step(direction: str) -> tuple[int, int]:
    """The shift by one pixel, (dx, dy), for a name. Raises ValueError for a name that is not in `DIRECTIONS`."""
    if direction not in DIRECTIONS:
        raise ValueError(f"expected a direction from {', '.join(DIRECTIONS)}, got {direction!r}")
    return DIRECTIONS[direction]


def run(model: nn.Module, images: Tensor) -> Tensor:
    """The model's output in eval mode, without gradients; each submodule's mode is restored afterwards.

    Raises TypeError for a model that does not return one tensor.
    """
    with eval_mode(model), torch.no_grad():
        out = model(images)
    if not isinstance(out, Tensor):
        raise TypeError(f"expected a model that returns one tensor, got {type(out).__name__}")
    return out


def equivariance_error(
    layer: nn.Module, images: Tensor, shifts: Sequence[int], *, direction: str = "right", border: int = 8
) -> Tensor:
    """Shift, then the layer, compared with the layer, then shift: one relative error per shift, (len(shifts),).

    layer: maps images (B, C, H, W) to a grid (B, C', H', W') with H = stride * H' and W = stride * W'; the stride is
    read off the shapes. images: on the layer's device, already normalised.
    An image moved by s pixels should move the output by s / stride positions. If that isn't a whole number, the two
    neighbouring whole shifts are tried and the better one counts: the error is the smallest that any whole shift of
    the output can leave. It is the norm of the difference over the norm of the output that stays, both taken over the
    inside only: `border` pixels, and the largest shift, are left out at each side, so that neither padding nor what
    moves in or out is compared. border must be at least the radius of the receptive field.
    Raises ValueError if nothing is left inside, or if the shapes give no whole stride.
    """
    dx, dy = step(direction)
    if not len(shifts):
        raise ValueError("expected at least one shift, got none")
    if images.ndim != 4:
        raise ValueError(f"images: expected shape (B, C, H, W), got {tuple(images.shape)}")
    still = run(layer, images)
    H, W = images.shape[-2:]
    if still.ndim != 4 or H % still.shape[-2] or W % still.shape[-1] or H // still.shape[-2] != W // still.shape[-1]:
        raise ValueError(
            f"expected an output (B, C, H, W) whose sides divide the input's {H} x {W} by one stride, "
            f"got shape {tuple(still.shape)}"
        )
    stride = H // still.shape[-2]
    edge = -(-(border + max(abs(int(s)) for s in shifts)) // stride)  # places left out at each side, rounded up
    if 2 * edge >= min(still.shape[-2:]):
        raise ValueError(
            f"nothing is left inside: a border of {border} pixels and shifts up to {max(map(abs, shifts))} need an "
            f"image of more than {2 * edge * stride} pixels a side, got {H} x {W}"
        )

    def inside(grid: Tensor) -> Tensor:
        return grid[..., edge : grid.shape[-2] - edge, edge : grid.shape[-1] - edge]

    errors = []
    for s in shifts:
        moved_first = inside(run(layer, shift(images, s * dx, s * dy)))
        low = s // stride
        candidates = {low, -(-s // stride)}  # one where the stride divides s, else the two neighbours
        gaps = [(moved_first - inside(shift(still, n * dx, n * dy))).norm() for n in candidates]
        errors.append(min(gaps) / inside(still).norm())
    return torch.stack(errors).cpu()


def output_change(
    model: nn.Module, images: Tensor, shifts: Sequence[int], *, direction: str = "right"
) -> Tensor:
    """How far a pooled output moves if the image does: one relative change per shift, (len(shifts),). 0 is invariance.

    model: images (B, C, H, W) -> one vector per image, (B, K). images: on the model's device, already normalised.
    Mean over the images of |f(shifted) - f(image)| / |f(image)|, with Euclidean norms.
    Raises ValueError for an output that is not (B, K).
    """
    dx, dy = step(direction)
    still = run(model, images)
    if still.ndim != 2:
        raise ValueError(f"expected one vector per image, (B, K), got shape {tuple(still.shape)}")
    changes = []
    for s in shifts:
        moved = run(model, shift(images, s * dx, s * dy))
        changes.append(((moved - still).norm(dim=1) / still.norm(dim=1)).mean())
    return torch.stack(changes).cpu()


def accuracy_under_shift(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    shifts: Sequence[int],
    *,
    mean: float | Sequence[float] | Tensor,
    std: float | Sequence[float] | Tensor,
    directions: Sequence[str] = tuple(DIRECTIONS),
    device: str | torch.device = "cpu",
) -> Tensor:
    """Accuracy, 0..1, of a classifier on images moved by each shift: (len(directions), len(shifts)).

    images: uint8 (N, C, H, W), as in a `Dataset`; they are moved first (black moves in) and normalised after.
    mean, std: per channel, those that the model was trained with. The model is evaluated in eval mode.
    What leaves the frame is lost, and no model can see it: leave a margin around the object if that matters.
    Raises ValueError for an unknown direction, or shapes that do not fit.
    """
    if not len(shifts) or not len(directions):
        raise ValueError(f"expected shifts and directions, got {len(shifts)} and {len(directions)}")
    steps = [step(direction) for direction in directions]
    rows = []
    for dx, dy in steps:
        moved = (shift(images, s * dx, s * dy) for s in shifts)
        rows.append([evaluate(model, m, labels, mean=mean, std=std, device=device).accuracy for m in moved])
    return torch.tensor(rows)
