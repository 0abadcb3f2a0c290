"""Answers to the exercises of chapter 12, for tests/test_exercise_checks.py."""


def may_look(body: str) -> str:
    return f"def may_look(a, b, window, shift):\n    {body}\n"


def by_sides(same: str) -> str:
    return may_look(f"return all({same} for x, y, M, s in zip(a, b, window, shift))")


def fused(added: str, scale: str = "None", shape: str = "mixed.transpose(2, 3)", bias: str = "attn.bias()") -> str:
    return f"""
def fused(attn, windows, mask):
    B, nW, M, D = windows.shape
    h = attn.num_heads
    q, k, v = attn.qkv(windows).reshape(B, nW, M, 3, h, D // h).permute(3, 0, 1, 4, 2, 5)
    bias = {bias}
    added = {added}
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale={scale})
    return attn.proj({shape}.reshape(B, nW, M, D))
"""


ADDED = 'bias.masked_fill(~mask[:, None], float("-inf"))'

ANSWERS = [
    ("12.1", "right", "rounded up on each side", "count = -(-120 // 7) * -(-160 // 7)"),
    ("12.1", "right", "a number", "count = 414"),
    ("12.1", "right", "a tensor", "count = torch.tensor(18) * 23"),
    ("12.1", "wrong", "rounded down", "count = (120 // 7) * (160 // 7)"),
    ("12.1", "wrong", "all tokens by those of a window", "count = -(-120 * 160 // 49)"),
    ("12.1", "wrong", "pixels for tokens", "count = -(-480 // 7) * -(-640 // 7)"),
    ("12.1", "wrong", "tokens", "count = 120 * 160"),
    ("12.1", "wrong", "not rounded", "count = 120 / 7 * 160 / 7"),
    ("12.2", "right", "floors", by_sides("(x - s) // M == (y - s) // M")),
    ("12.2", "right", "counted from one window before", by_sides("(x - s + M) // M == (y - s + M) // M")),
    (
        "12.2",
        "right",
        "tensors",
        may_look(
            "a, b, M, s = (torch.tensor(t) for t in (a, b, window, shift))\n    "
            "return torch.equal((a - s).div(M, rounding_mode='floor'), (b - s).div(M, rounding_mode='floor'))"
        ),
    ),
    ("12.2", "wrong", "no shift", by_sides("x // M == y // M")),
    ("12.2", "wrong", "shifted the other way", by_sides("(x + s) // M == (y + s) // M")),
    ("12.2", "wrong", "truncated towards zero", by_sides("int((x - s) / M) == int((y - s) / M)")),
    (
        "12.2",
        "wrong",
        "rows alone",
        may_look("return (a[0] - shift[0]) // window[0] == (b[0] - shift[0]) // window[0]"),
    ),
    ("12.2", "wrong", "one side is enough", by_sides("(x - s) // M == (y - s) // M").replace("all(", "any(")),
    ("12.2", "wrong", "near enough", by_sides("abs(x - y) < M")),
    ("12.2", "wrong", "always", may_look("return True")),
    (
        "12.2",
        "wrong",
        "without the mask",
        may_look(
            "grid = 8, 9\n    return all((x - s) % n // M == (y - s) % n // M "
            "for x, y, M, s, n in zip(a, b, window, shift, grid))"
        ),
    ),
    ("12.3", "right", "one matrix", fused(ADDED)),
    ("12.3", "right", "a large negative number", fused("bias + torch.where(mask, 0.0, -1e4)[:, None]")),
    (
        "12.3",
        "right",
        "by hand, windows in the batch",
        """
def fused(attn, windows, mask):
    B, nW, M, D = windows.shape
    h = attn.num_heads
    x = windows.reshape(B * nW, M, D)
    q, k, v = attn.qkv(x).reshape(B * nW, M, 3, h, D // h).permute(2, 0, 3, 1, 4)
    added = attn.bias() + torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))[:, None]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=added.repeat(B, 1, 1, 1))
    return attn.proj(mixed.transpose(1, 2).reshape(B, nW, M, D))
""",
    ),
    ("12.3", "wrong", "mask the wrong way round", fused(ADDED.replace("~", ""))),
    ("12.3", "wrong", "no bias", fused("mask[:, None]")),
    ("12.3", "wrong", "no mask", fused("bias")),
    ("12.3", "wrong", "the mask added as 0 and 1", fused("bias + mask[:, None]")),
    ("12.3", "wrong", "not divided", fused(ADDED, scale="1.0")),
    ("12.3", "wrong", "the bias scaled too", fused(ADDED, bias="attn.bias() / (D // h) ** 0.5")),
    ("12.3", "wrong", "heads joined in the wrong order", fused(ADDED, shape="mixed")),
    ("12.3", "wrong", "the bias transposed", fused(ADDED, bias="attn.bias().mT")),
]
