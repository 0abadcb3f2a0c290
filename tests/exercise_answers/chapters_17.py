"""Answers to the exercises of chapter 17, for tests/test_exercise_checks.py."""


def turn(first: str, second: str, x: str = "x[..., 0::2], x[..., 1::2]", end: str = "torch.stack") -> str:
    joined = f"{end}(({first}, {second}), dim=-1)" + (".flatten(-2)" if end == "torch.stack" else "")
    return f"""
def rotate_neighbours(x, angles):
    a, b = {x}
    cos, sin = angles.cos(), angles.sin()
    return {joined}
"""


def mask(body: str) -> str:
    return f"def packing_mask(counts):\n    T = sum(counts)\n    {body}\n"


A, B = "a * cos - b * sin", "b * cos + a * sin"
NUMBERS = "n = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))\n    "

ANSWERS = [
    ("17.1", "right", "a number", "width = 1024"),
    ("17.1", "right", "two thirds", "width = 1536 * 2 / 3"),
    ("17.1", "wrong", "as wide as the MLP", "width = 1536"),
    ("17.1", "wrong", "half", "width = 768"),
    ("17.1", "wrong", "three halves", "width = 2304"),
    ("17.1", "wrong", "of the channels", "width = 384 * 2 // 3"),
    ("17.2", "right", "stacked", turn(A, B)),
    (
        "17.2",
        "right",
        "into an empty tensor",
        "def rotate_neighbours(x, angles):\n    out = torch.empty_like(x)\n    a, b = x[..., ::2], x[..., 1::2]\n"
        "    out[..., ::2] = a * angles.cos() - b * angles.sin()\n"
        "    out[..., 1::2] = b * angles.cos() + a * angles.sin()\n    return out",
    ),
    ("17.2", "wrong", "turned the other way", turn("a * cos + b * sin", "b * cos - a * sin")),
    ("17.2", "wrong", "mirrored", turn(A, "b * cos - a * sin")),
    ("17.2", "wrong", "halves, as in rotate", turn(A, B, "x.chunk(2, dim=-1)", "torch.cat")),
    ("17.2", "wrong", "neighbours taken, but put back as halves", turn(A, B, end="torch.cat")),
    ("17.2", "wrong", "nothing turned", "def rotate_neighbours(x, angles):\n    return x"),
    ("17.3", "right", "equal numbers", mask(NUMBERS + "return n[:, None] == n")),
    ("17.3", "right", "blocks", mask("return torch.block_diag(*(torch.ones(n, n) for n in counts)).bool()")),
    ("17.3", "wrong", "earlier images too", mask(NUMBERS + "return n[:, None] >= n")),
    ("17.3", "wrong", "everything", mask("return torch.ones(T, T, dtype=torch.bool)")),
    ("17.3", "wrong", "each to itself", mask("return torch.eye(T, dtype=torch.bool)")),
    ("17.3", "wrong", "blocks of numbers", mask("return torch.block_diag(*(torch.ones(n, n) for n in counts))")),
    ("17.3", "wrong", "the other way round", mask(NUMBERS + "return n[:, None] != n")),
]
