"""Muon: momentum whose steps have singular values near 1. Chapter 6 writes `orthogonalise` and `inside` out."""

import torch
from torch import Tensor, nn

from vitutils.training.recipe import Recipe
from vitutils.training.schedule import parameter_groups


def orthogonalise(matrices: Tensor, rounds: int = 5) -> Tensor:
    """Move the singular values of matrices (N, rows, columns) to near 1.

    Each round applies one odd polynomial to all singular values, which
    needs products of matrices only. Its numbers (Jordan et al. 2024) were
    chosen for speed: values end between 0.7 and 1.2, not at 1.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    X = matrices.mT if tall else matrices
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # values at most 1
    for _ in range(rounds):
        A = X @ X.mT
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X.mT if tall else X


def inside(weights: list[Tensor]) -> list[Tensor]:
    """Those that Muon moves: matrices and filters between the first layer
    and the head (or heads: as many rows as the last).
    """
    return [w for w in weights[1:] if w.shape[0] != weights[-1].shape[0]]


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for weight matrices of hidden layers.

    lr: as for AdamW; steps are scaled to about its size. Biases, norms,
    positions, the patch embedding and the head need another optimizer.
    As `torch.optim.Muon`, but in float32, and equal shapes in one go; a
    convolution's filters (out, in, k, k) count as a matrix (out, in k k).
    Raises ValueError for a parameter with fewer than two axes.
    """

    def __init__(self, matrices, lr=0.02, weight_decay=0.05, momentum=0.95):
        settings = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(matrices, settings | {"momentum": momentum})
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.ndim < 2:
                    shape = tuple(matrix.shape)
                    raise ValueError(f"expected matrices, got shape {shape}")

    @torch.no_grad()
    def step(self, closure=None):
        """Change all matrices that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike = {}  # shape -> matrices
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike.setdefault(matrix.shape, []).append(matrix)
            for matrices in alike.values():
                directions = torch.stack([self.moved(m, group["momentum"]).flatten(1) for m in matrices])
                size = group["lr"] * 0.2 * max(directions.shape[1:]) ** 0.5
                for matrix, direction in zip(matrices, orthogonalise(directions), strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.sub_(direction.view(matrix.shape), alpha=size)
        return loss

    def moved(self, matrix: Tensor, momentum: float) -> Tensor:
        """Nesterov's momentum: the mean gradient, with this one again."""
        state = self.state[matrix]
        mean = state.setdefault("mean", torch.zeros_like(matrix))
        mean.lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(mean, momentum)


def make_optimizers(model: nn.Module, recipe: Recipe, fused: bool = False) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters; with recipe.muon_lr AdamW and Muon, which gets the weights that `inside` names.

    fused: AdamW's own argument. Raises ValueError where the recipe asks for Muon and no weights are left for it.
    """
    groups = parameter_groups(model, recipe.weight_decay)
    if recipe.muon_lr is None:
        return [torch.optim.AdamW(groups, lr=recipe.lr, fused=fused)]
    matrices = inside(groups[0]["params"])
    if not matrices:
        raise ValueError("muon_lr: expected weights between the first layer and the head for Muon to move, found none")
    chosen = set(matrices)
    groups = [{**group, "params": [p for p in group["params"] if p not in chosen]} for group in groups]
    muon = Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay)
    return [torch.optim.AdamW(groups, lr=recipe.lr, fused=fused), muon]
