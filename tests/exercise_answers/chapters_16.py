"""Answers to the exercises of chapter 16, for tests/test_exercise_checks.py."""


def masked(last: str, error: str = "(guess - target).square().mean(dim=-1)") -> str:
    return f"""
def masked_loss(guess, target, hidden):
    error = {error}
    return {last}
"""


def centre(mean: str, last: str = "centre + rate * (mean - centre)") -> str:
    return f"""
def next_centre(centre, parts, rate):
    mean = {mean}
    return {last}
"""


WHOLE = "torch.cat(parts).mean(dim=0)"
ANSWERS = [
    ("16.1", "right", "by the logarithm", "suspicious = math.log(65_536)"),
    ("16.1", "right", "two decimals", "suspicious = 11.09"),
    ("16.1", "right", "from powers of two", "suspicious = 16 * math.log(2)"),
    ("16.1", "wrong", "bits", "suspicious = 16"),
    ("16.1", "wrong", "that of 4,096 outputs", "suspicious = 8.3178"),
    ("16.1", "wrong", "base ten", "suspicious = math.log10(65_536)"),
    ("16.1", "wrong", "the other collapse", "suspicious = 0"),
    ("16.1", "wrong", "16 times that of 4,096", "suspicious = 8.3178 * 16"),
    ("16.2", "right", "by the mask", masked("error[hidden].mean()")),
    ("16.2", "right", "multiplied, divided by the hidden", masked("(error * hidden).sum() / hidden.sum()")),
    ("16.2", "right", "all pixels at once", masked("error", "(guess[hidden] - target[hidden]).square().mean()")),
    ("16.2", "wrong", "all patches", masked("error.mean()")),
    ("16.2", "wrong", "the visible ones", masked("error[~hidden].mean()")),
    ("16.2", "wrong", "divided by all patches", masked("(error * hidden).mean()")),
    ("16.2", "wrong", "a sum", masked("error[hidden].sum()")),
    ("16.2", "wrong", "absolute errors", masked("error[hidden].mean()", "(guess - target).abs().mean(dim=-1)")),
    (
        "16.2",
        "wrong",
        "images count alike, not patches",
        masked("((error * hidden).sum(dim=1) / hidden.sum(dim=1)).mean()"),
    ),
    ("16.3", "right", "all rows together", centre(WHOLE)),
    (
        "16.3",
        "right",
        "sums and numbers",
        centre("sum(p.sum(dim=0) for p in parts) / sum(map(len, parts))", "(1 - rate) * centre + rate * mean"),
    ),
    ("16.3", "right", "torch.lerp", centre(WHOLE, "torch.lerp(centre, mean, rate)")),
    ("16.3", "wrong", "a mean of means", centre("torch.stack([p.mean(dim=0) for p in parts]).mean(dim=0)")),
    ("16.3", "wrong", "the first worker's", centre("parts[0].mean(dim=0)")),
    ("16.3", "wrong", "the rate on the wrong side", centre(WHOLE, "rate * centre + (1 - rate) * mean")),
    ("16.3", "wrong", "in place", centre(WHOLE, "centre.lerp_(mean, rate)")),
    ("16.3", "wrong", "the mean itself", centre(WHOLE, "mean")),
    ("16.3", "wrong", "summed, not averaged", centre("torch.cat(parts).sum(dim=0)")),
]
