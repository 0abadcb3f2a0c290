"""Answers to the exercises of chapter 12, for tests/test_exercise_checks.py."""


def window_of(body: str) -> str:
    return f"def window_of(i, j, width, size):\n    {body}\n"


def padded(body: str) -> str:
    return f"def padded_side(side, size):\n    return {body}\n"


ANSWERS = [
    ("12.1", "right", "a square", "count = 64"),
    ("12.1", "right", "an area", "count = 56 * 56 / 7 / 7"),
    ("12.1", "wrong", "a side", "count = 8"),
    ("12.1", "wrong", "tokens", "count = 56 * 56"),
    ("12.1", "wrong", "tokens of a window", "count = 49"),
    ("12.1", "wrong", "one side divided", "count = 56 * 56 // 7"),
    ("12.2", "right", "floor divisions", window_of("return i // size * (width // size) + j // size")),
    ("12.2", "right", "divmod", window_of("return divmod(i, size)[0] * (width // size) + divmod(j, size)[0]")),
    ("12.2", "wrong", "columns first", window_of("return j // size * (width // size) + i // size")),
    ("12.2", "wrong", "side for the count", window_of("return i // size * size + j // size")),
    ("12.2", "wrong", "width in tokens", window_of("return i // size * width + j // size")),
    ("12.2", "wrong", "the place within", window_of("return i % size * size + j % size")),
    ("12.3", "right", "negative floor", padded("-(-side // size) * size")),
    ("12.3", "right", "modulo", padded("side + (-side) % size")),
    ("12.3", "wrong", "one more always", padded("(side // size + 1) * size")),
    ("12.3", "wrong", "rounded down", padded("side // size * size")),
    ("12.3", "wrong", "one window more", padded("side + size")),
    ("12.3", "wrong", "the padding alone", padded("(-side) % size")),
]
