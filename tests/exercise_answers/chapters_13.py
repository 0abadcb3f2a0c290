"""Answers to the exercises of chapter 13, for tests/test_exercise_checks.py."""


def pairs(scores: str, factor: str) -> str:
    return f"scores = {scores}\nfactor = {factor}\n"


def farthest(
    keep: str = "torch.minimum(gap, new)", start: str = "[0]", pick: str = "argmax", last: str = "torch.tensor(chosen)"
) -> str:
    return f"""
def farthest(points, count):
    chosen = {start}
    gap = (points - points[chosen[0]]).norm(dim=1)
    while len(chosen) < count:
        chosen.append(gap.{pick}().item())
        new = (points - points[chosen[-1]]).norm(dim=1)
        gap = {keep}
    return {last}
"""


def upright(last: str) -> str:
    return f"""
def upright_steps(points, near):
    steps = of_neighbours(points, near) - points[:, :, None]
    return {last}
"""


FLAT = "steps[..., :2].norm(dim=3)"
ANSWERS = [
    ("13.1", "right", "powers", pairs("10**10", "6250")),
    ("13.1", "right", "products", pairs("100_000 * 100_000", "100_000 / 16")),
    ("13.1", "wrong", "each pair once", pairs("100_000 * 99_999 // 2", "6250")),
    ("13.1", "wrong", "no point with itself", pairs("100_000 * 99_999", "6250")),
    ("13.1", "wrong", "the number of neighbours", pairs("10**10", "16")),
    ("13.1", "wrong", "the factor upside down", pairs("10**10", "16 / 100_000")),
    ("13.2", "right", "one number a point", farthest()),
    ("13.2", "right", "a list", farthest(last="chosen")),
    (
        "13.2",
        "right",
        "all distances anew",
        "def farthest(points, count):\n    chosen = [0]\n    while len(chosen) < count:\n        "
        "chosen.append(torch.cdist(points, points[chosen]).amin(dim=1).argmax().item())\n    return chosen\n",
    ),
    ("13.2", "wrong", "from the last alone", farthest("new")),
    ("13.2", "wrong", "the sum of distances", farthest("gap + new")),
    ("13.2", "wrong", "the farthest member", farthest("torch.maximum(gap, new)")),
    ("13.2", "wrong", "nearest points", farthest(pick="argmin")),
    ("13.2", "wrong", "another first", farthest(start="[1]")),
    ("13.2", "wrong", "one too few", farthest(last="torch.tensor(chosen[1:])")),
    ("13.2", "wrong", "points", farthest(last="points[chosen]")),
    (
        "13.2",
        "wrong",
        "the farthest from the first",
        "def farthest(points, count):\n    return (points - points[0]).norm(dim=1).argsort(descending=True)[:count]\n",
    ),
    ("13.3", "right", "height and length in the plane", upright(f"torch.stack([steps[..., 2], {FLAT}], dim=3)")),
    ("13.3", "right", "height and length", upright("torch.stack([steps[..., 2], steps.norm(dim=3)], dim=3)")),
    (
        "13.3",
        "right",
        "squares",
        upright("torch.stack([steps[..., 2], steps[..., :2].square().sum(dim=3)], dim=3)"),
    ),
    ("13.3", "wrong", "x and y", upright("steps[..., :2]")),
    ("13.3", "wrong", "y and z", upright("steps[..., 1:]")),
    ("13.3", "wrong", "length twice", upright("torch.stack([steps.norm(dim=3)] * 2, dim=3)")),
    ("13.3", "wrong", "height twice", upright("torch.stack([steps[..., 2]] * 2, dim=3)")),
    ("13.3", "wrong", "direction alone", upright(
        f"torch.stack([steps[..., 2], {FLAT}], dim=3) / (steps.norm(dim=3, keepdim=True) + 1e-9)")),
    ("13.3", "wrong", "the point's own height", upright(
        f"torch.stack([points[..., 2, None].expand(steps.shape[:3]), {FLAT}], dim=3)")),
    ("13.3", "wrong", "nothing", upright("torch.zeros(*steps.shape[:3], 2)")),
    ("13.3", "wrong", "three numbers", upright("steps")),
]  # fmt: skip
