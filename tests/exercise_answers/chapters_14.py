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
        "wrong",
        "queries one by one, each with all keys",
        """
def in_pieces(q, k, v, size):
    return torch.cat([by_hand(row, k, v) for row in q.split(1, dim=2)], dim=2)
""",
    ),
    ("14.3", "right", "logarithms of the sums", """
def in_pieces(q, k, v, size):
    out, total = torch.zeros_like(q), torch.full_like(q[..., :1], -math.inf)
    for a, b in zip(k.split(size, dim=2), v.split(size, dim=2)):
        scores = q @ a.mT / q.shape[-1] ** 0.5
        here = scores.logsumexp(dim=-1, keepdim=True)
        new = torch.logaddexp(total, here)
        out = out * (total - new).exp() + scores.softmax(dim=-1) @ b * (here - new).exp()
        total = new
    return out
"""),
    ("14.3", "wrong", "the whole map", "in_pieces = lambda q, k, v, size: by_hand(q, k, v)"),
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
    ("14.3", "wrong", "the fused kernel itself", """
def in_pieces(q, k, v, size):
    return F.scaled_dot_product_attention(q, k, v)
"""),
    ("14.3", "wrong", "pieces of queries, not of keys", """
def in_pieces(q, k, v, size):
    return torch.cat([by_hand(a, k, v) for a in q.split(size, dim=2)], dim=2)
"""),
    ("14.3", "wrong", "16 keys, whatever `size` is", """
def in_pieces(q, k, v, size):
    out, total = torch.zeros_like(q), torch.full_like(q[..., :1], -math.inf)
    for a, b in zip(k.split(16, dim=2), v.split(16, dim=2)):
        scores = q @ a.mT / q.shape[-1] ** 0.5
        here = scores.logsumexp(dim=-1, keepdim=True)
        new = torch.logaddexp(total, here)
        out = out * (total - new).exp() + scores.softmax(dim=-1) @ b * (here - new).exp()
        total = new
    return out
"""),
    ("14.3", "wrong", "a largest score that starts at 0", """
def in_pieces(q, k, v, size):
    top = torch.zeros_like(q[..., :1])
    total, mixed = torch.zeros_like(top), torch.zeros_like(q)
    for a, b in zip(k.split(size, 2), v.split(size, 2)):
        scores = q @ a.mT / math.sqrt(q.shape[-1])
        new = torch.maximum(top, scores.amax(dim=-1, keepdim=True))
        shrink, scores = (top - new).exp(), (scores - new).exp()
        total = total * shrink + scores.sum(dim=-1, keepdim=True)
        mixed, top = mixed * shrink + scores @ b, new
    return mixed / total
"""),
    ("14.3", "wrong", "keeps the scores of all pieces in a list", """
def in_pieces(q, k, v, size):
    scores = [q @ a.mT / math.sqrt(q.shape[-1]) for a in k.split(size, 2)]
    top = torch.stack([s.amax(-1) for s in scores]).amax(0)[..., None]
    weights = [(s - top).exp() for s in scores]
    mixed = sum(w @ b for w, b in zip(weights, v.split(size, 2)))
    return mixed / sum(w.sum(-1, keepdim=True) for w in weights)
"""),
    ("14.3", "wrong", "the first image of the batch only", """
def in_pieces(q, k, v, size):
    out, total = torch.zeros_like(q[:1]), torch.full_like(q[:1, ..., :1], -math.inf)
    for a, b in zip(k[:1].split(size, dim=2), v[:1].split(size, dim=2)):
        scores = q[:1] @ a.mT / q.shape[-1] ** 0.5
        here = scores.logsumexp(dim=-1, keepdim=True)
        new = torch.logaddexp(total, here)
        out = out * (total - new).exp() + scores.softmax(dim=-1) @ b * (here - new).exp()
        total = new
    return out.expand_as(q)
"""),
    ("14.3", "right", "two passes, the largest score first", """
def in_pieces(q, k, v, size):
    scale = q.shape[-1] ** -0.5
    parts = list(zip(k.split(size, 2), v.split(size, 2)))
    top = torch.stack([(q @ a.mT * scale).amax(-1) for a, _ in parts]).amax(0)[..., None]
    total, mixed = 0, 0
    for a, b in parts:
        weights = (q @ a.mT * scale - top).exp()
        total, mixed = total + weights.sum(-1, keepdim=True), mixed + weights @ b
    return mixed / total
"""),
    ("14.3", "right", "heads one by one, in float64", """
def of_one(q, k, v, size):
    top, total, mixed = torch.full((len(q), 1), -math.inf, dtype=q.dtype), 0, 0
    for a, b in zip(k.split(size), v.split(size)):
        scores = torch.einsum("id,jd->ij", q, a) / math.sqrt(q.shape[-1])
        new = torch.maximum(top, scores.amax(1, keepdim=True))
        shrink, weights = (top - new).exp(), (scores - new).exp()
        total = total * shrink + weights.sum(1, keepdim=True)
        mixed, top = mixed * shrink + weights @ b, new
    return mixed / total


def in_pieces(q, k, v, size):
    q, k, v = q.double(), k.double(), v.double()
    out = torch.zeros_like(q)
    for i in range(q.shape[0]):
        for j in range(q.shape[1]):
            out[i, j] = of_one(q[i, j], k[i, j], v[i, j], size)
    return out
"""),
]
