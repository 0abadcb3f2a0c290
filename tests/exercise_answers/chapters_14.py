"""Answers to the exercises of chapter 14, for tests/test_exercise_checks.py."""


def speed_up(body: str) -> str:
    return f"def speed_up(old, new):\n    old, new = np.array(old), np.array(new)\n    {body}\n"


def in_pieces(
    shrink: str = "(top - new).exp()",
    new: str = "torch.maximum(top, scores.amax(dim=-1, keepdim=True))",
    scores: str = "q @ a.transpose(-2, -1) / math.sqrt(q.shape[-1])",
    out: str = "mixed / total",
    mixed: str = "mixed * shrink",
) -> str:
    return f"""
def in_pieces(q, k, v, size):
    top = q.new_full((*q.shape[:-1], 1), -math.inf)
    total, mixed = torch.zeros_like(top), torch.zeros_like(q)
    for start in range(0, k.shape[2], size):
        a, b = k[:, :, start:start + size], v[:, :, start:start + size]
        scores = {scores}
        new = {new}
        shrink = {shrink}
        scores = (scores - new).exp()
        total = total * shrink + scores.sum(dim=-1, keepdim=True)
        mixed, top = {mixed} + scores @ b, new
    return {out}
"""


ANSWERS = [
    ("14.1", "right", "a number", "equal = 384"),
    ("14.1", "right", "derived", "equal = 8 * 192**2 // (4 * 192)"),
    ("14.1", "right", "a tensor", "equal = torch.tensor(384)"),
    ("14.1", "wrong", "the width", "equal = 192"),
    ("14.1", "wrong", "the MLP counted too", "equal = 6 * 192"),
    ("14.1", "wrong", "three projections", "equal = 3 * 192 // 2"),
    ("14.1", "wrong", "one of the two products", "equal = 4 * 192"),
    ("14.1", "wrong", "a ViT's own tokens", "equal = 197"),
    ("14.1", "wrong", "no tokens at all", "equal = 0"),
    ("14.2", "right", "median of ratios", speed_up("return np.median(old / new)")),
    ("14.2", "right", "sorted by hand", speed_up("return sorted(old / new)[len(old) // 2]")),
    ("14.2", "right", "in logarithms", speed_up("return np.exp(np.median(np.log(old) - np.log(new)))")),
    ("14.2", "wrong", "ratio of medians", speed_up("return np.median(old) / np.median(new)")),
    ("14.2", "wrong", "mean of ratios", speed_up("return np.mean(old / new)")),
    ("14.2", "wrong", "ratio of sums", speed_up("return old.sum() / new.sum()")),
    ("14.2", "wrong", "exchanged", speed_up("return np.median(new / old)")),
    ("14.2", "wrong", "the best ratio", speed_up("return np.max(old / new)")),
    ("14.2", "wrong", "seconds won", speed_up("return np.median(old - new)")),
    ("14.2", "wrong", "a number by heart", speed_up("return 1.5")),
    ("14.3", "right", "the largest so far", in_pieces()),
    (
        "14.3",
        "right",
        "queries one by one",
        """
def in_pieces(q, k, v, size):
    return torch.cat([by_hand(row, k, v) for row in q.split(1, dim=2)], dim=2)
""",
    ),
    ("14.3", "wrong", "fused, by the function itself", "in_pieces = lambda q, k, v, size: by_hand(q, k, v)"),
    ("14.3", "wrong", "shrunk the wrong way", in_pieces(shrink="(new - top).exp()")),
    ("14.3", "wrong", "nothing shrunk", in_pieces(shrink="1.0")),
    ("14.3", "wrong", "no largest: overflows", in_pieces(new="torch.zeros_like(top)", shrink="1.0")),
    ("14.3", "wrong", "no scale", in_pieces(scores="q @ a.transpose(-2, -1)")),
    ("14.3", "wrong", "not divided", in_pieces(out="mixed")),
    ("14.3", "wrong", "values not shrunk", in_pieces(mixed="mixed")),
    (
        "14.3",
        "wrong",
        "a softmax in each piece",
        """
def in_pieces(q, k, v, size):
    pieces = [by_hand(q, a, b) for a, b in zip(k.split(size, 2), v.split(size, 2))]
    return sum(pieces) / len(pieces)
""",
    ),
]
