"""Answers to the exercises of chapters 5 and 6."""

PARTS = """
def block_parameters(D, hidden):
    attention, mlp, norms = 4 * D * D + 4 * D, 2 * D * hidden + hidden + D, 4 * D
    return {}
"""
JOIN = """
def join_qkv(query, key, value):
    parts = (query, key, value)
    return {}
"""
SCALE = """
@torch.no_grad()
def scale_is_right(attention):
    W, h = attention.qkv.weight, attention.num_heads
    D = W.shape[1]
    x = 10 * torch.randn(1, 6, D)
    q, k, _ = attention.qkv(x).reshape(1, 6, 3, h, D // h).permute(2, 0, 3, 1, 4)
    out, attn = attention(x, need_weights=True)
    def mine(root):
        return (q @ k.transpose(-2, -1) / root ** 0.5).softmax(-1)
    return {}
"""
RATE = """
import math

def rate(step, steps, rising, peak):
    rise, share = peak * (step + 1) / rising, (step - rising) / (steps - rising)
    def fall(share):
        return peak * (1 + math.cos(math.pi * share)) / 2
    return {}
"""
SMOOTHED = """
def smoothed_loss(logits, labels, s):
    B, K = logits.shape
    logp, true = logits.log_softmax(1), F.one_hot(labels, K)
    nll = -logp[torch.arange(B), labels]
    return {}
"""
AVERAGE = """
@torch.no_grad()
def update_average(averaged, model, d):
    for average, weight in zip(averaged.parameters(), model.parameters()):
        {}
"""

ANSWERS = [
    ("5.1", "wrong", "the MLP is taken as four times as wide", PARTS.format("12 * D * D + 13 * D")),
    ("5.1", "wrong", "no biases", PARTS.format("4 * D * D + 2 * D * hidden + 4 * D")),
    ("5.1", "wrong", "one norm", PARTS.format("attention + mlp + 2 * D")),
    ("5.1", "wrong", "no output projection", PARTS.format("3 * D * D + 3 * D + mlp + norms")),
    ("5.1", "wrong", "the ratio cut to a whole number", PARTS.format(
        "attention + 2 * D * (hidden // D) * D + (hidden // D + 1) * D + norms")),
    ("5.1", "wrong", "no qkv bias", PARTS.format("attention - 3 * D + mlp + norms")),
    ("5.1", "wrong", "words", PARTS.format("f'{attention + mlp + norms:,}'")),
    ("5.1", "right", "a sum", PARTS.format("attention + mlp + norms")),
    ("5.1", "right", "a float", PARTS.format("float(attention + mlp + norms)")),
    ("5.1", "right", "a tensor", PARTS.format("torch.tensor(attention + mlp + norms)")),
    ("5.1", "right", "layers of torch's, counted", PARTS.format(
        "sum(p.numel() for m in [nn.Linear(D, 3 * D), nn.Linear(D, D), nn.LayerNorm(D), nn.Linear(D, hidden), "
        "nn.Linear(hidden, D), nn.LayerNorm(D)] for p in m.parameters())").replace("\n", "\nfrom torch import nn\n", 1),
    ),
    ("5.2", "wrong", "a reshape in place of the transpose", JOIN.format(
        "torch.cat([p.reshape(-1, p.shape[0]) for p in parts])")),
    ("5.2", "wrong", "not transposed", JOIN.format("torch.cat([p.flatten(1) for p in parts])")),
    ("5.2", "wrong", "keys first", JOIN.format("torch.cat([p.flatten(1).T for p in (key, query, value)])")),
    ("5.2", "wrong", "side by side", JOIN.format("torch.cat([p.flatten(1).T for p in parts], dim=1)")),
    ("5.2", "wrong", "heads outermost", JOIN.format("torch.stack(parts).permute(2, 0, 3, 1).reshape(-1, len(query))")),
    ("5.2", "wrong", "heads and their width exchanged", JOIN.format(
        "torch.cat([p.transpose(1, 2).flatten(1).T for p in parts])")),
    ("5.2", "wrong", "the root goes into the caller's queries", JOIN.format(
        "torch.cat([p.flatten(1).T for p in (query.mul_(query.shape[2] ** -0.5), key, value)])")),
    ("5.2", "right", "by permute", JOIN.format("torch.cat([p.permute(1, 2, 0).reshape(-1, len(p)) for p in parts])")),
    ("5.2", "right", "stacked", JOIN.format("torch.stack(parts).flatten(2).transpose(1, 2).flatten(0, 1)")),
    ("5.2", "right", "by einsum", JOIN.format(
        "torch.einsum('ndhe->nhed', torch.stack(parts)).reshape(3 * len(query), len(query))")),
    ("5.3", "wrong", "always True", SCALE.format("True")),
    ("5.3", "wrong", "always False", SCALE.format("False")),
    ("5.3", "wrong", "the root of D", SCALE.format("torch.allclose(attn, mine(D), atol=1e-4)")),
    ("5.3", "wrong", "the root of h", SCALE.format("torch.allclose(attn, mine(h), atol=1e-4)")),
    ("5.3", "wrong", "the rows sum to 1", SCALE.format("torch.allclose(attn.sum(-1), torch.ones(1, h, 6))")),
    ("5.3", "wrong", "the class", SCALE.format("type(attention) is SelfAttention")),
    ("5.3", "wrong", "a name in the class", SCALE.format("getattr(attention, 'fault', '') != 'scale'")),
    ("5.3", "wrong", "its two paths agree", SCALE.format("torch.allclose(out, attention(x), atol=1e-4)")),
    ("5.3", "wrong", "Dh is 16", SCALE.format("torch.allclose(attn, mine(16), atol=1e-4)")),
    ("5.3", "right", "a bool", SCALE.format("torch.allclose(attn, mine(D // h), atol=1e-4)")),
    ("5.3", "right", "a tensor", SCALE.format("(attn - mine(D // h)).abs().max() < 1e-4")),
    ("5.3", "right", "a tensor of them", SCALE.format("torch.isclose(attn, mine(D // h), atol=1e-4)")),
    ("5.3", "right", "by the outputs", SCALE.format(
        "torch.allclose(attention.proj((mine(D // h) @ attention.qkv(x).reshape(1, 6, 3, h, -1).permute(2, 0, 3, 1, 4)"
        "[2]).transpose(1, 2).flatten(2)), out, atol=1e-4)")),
    ("5.3", "right", "the nearer of the two roots, as 0 or 1", SCALE.format(
        "int((attn - mine(D // h)).norm() < (attn - mine(D)).norm())")),
    ("6.1", "wrong", "the peak left out", RATE.format("2e-3 * (step + 1) / rising if step < rising else fall(share)")),
    ("6.1", "wrong", "20 and 180 as numbers", RATE.format(
        "peak * (step + 1) / 20 if step < 20 else fall((step - 20) / 180)")),
    ("6.1", "wrong", "starts at 0", RATE.format("peak * step / rising if step < rising else fall(share)")),
    ("6.1", "wrong", "down to 0 at the last step", RATE.format(
        "rise if step < rising else fall((step - rising) / (steps - rising - 1))")),
    ("6.1", "wrong", "the cosine starts at step 0", RATE.format("rise if step < rising else fall(step / steps)")),
    ("6.1", "wrong", "down in a line", RATE.format("rise if step < rising else peak * (1 - share)")),
    ("6.1", "wrong", "a quarter of a turn", RATE.format(
        "rise if step < rising else peak * math.cos(math.pi * share / 2)")),
    ("6.1", "right", "two cases", RATE.format("rise if step < rising else fall(share)")),
    ("6.1", "right", "the smaller of both", RATE.format("min(rise, fall(max(share, 0)))")),
    ("6.1", "right", "a tensor", RATE.format(
        "torch.where(torch.tensor(step) < rising, torch.tensor(rise), torch.tensor(fall(share)))")),
    ("6.1", "right", "a square of a cosine", RATE.format(
        "rise if step < rising else peak * math.cos(math.pi * share / 2) ** 2")),
    ("6.2", "wrong", "the function itself", SMOOTHED.format("F.cross_entropy(logits, labels, label_smoothing=s)")),
    ("6.2", "wrong", "the function's class", SMOOTHED.format(
        "torch.nn.CrossEntropyLoss(label_smoothing=s)(logits, labels)")),
    ("6.2", "wrong", "the function under another name", "from torch.nn.functional import cross_entropy as ce\n"
        + SMOOTHED.format("ce(logits, labels, label_smoothing=s)")),
    ("6.2", "wrong", "s shared out among the others alone", SMOOTHED.format(
        "-(((1 - s) * true + s / (K - 1) * (1 - true)) * logp).sum(1).mean()")),
    ("6.2", "wrong", "the true class without its share", SMOOTHED.format(
        "-(((1 - s) * true + s / K * (1 - true)) * logp).sum(1).mean()")),
    ("6.2", "wrong", "a sum over the batch", SMOOTHED.format("((1 - s) * nll - s * logp.mean(1)).sum()")),
    ("6.2", "wrong", "a mean over all targets", SMOOTHED.format("-(((1 - s) * true + s / K) * logp).mean()")),
    ("6.2", "wrong", "the log of a softmax", SMOOTHED.format(
        "-(((1 - s) * true + s / K) * logits.softmax(1).log()).sum(1).mean()")),
    ("6.2", "wrong", "ten classes as a number", SMOOTHED.format("((1 - s) * nll - s * logp.sum(1) / 10).mean()")),
    ("6.2", "wrong", "no smoothing", SMOOTHED.format("nll.mean()")),
    ("6.2", "right", "a table of targets", SMOOTHED.format("-(((1 - s) * true + s / K) * logp).sum(1).mean()")),
    ("6.2", "right", "two losses, mixed", SMOOTHED.format("(1 - s) * nll.mean() - s * logp.mean()")),
    ("6.2", "right", "nll_loss", SMOOTHED.format("(1 - s) * F.nll_loss(logp, labels) - s * logp.mean(1).mean()")),
    ("6.3", "wrong", "by assignment", AVERAGE.format("average = d * average + (1 - d) * weight")),
    ("6.3", "wrong", "d and 1 - d exchanged", AVERAGE.format("average.mul_(1 - d).add_(weight, alpha=d)")),
    ("6.3", "wrong", "watched by autograd", AVERAGE.format("average.mul_(d).add_(weight, alpha=1 - d)").replace(
        "@torch.no_grad()\n", "")),
    ("6.3", "wrong", "matrices alone", AVERAGE.format(
        "average.ndim > 1 and average.mul_(d).add_(weight, alpha=1 - d)")),
    ("6.3", "wrong", "d as a number", AVERAGE.format("average.mul_(0.9).add_(weight, alpha=0.1)")),
    ("6.3", "wrong", "the model is changed too", AVERAGE.format("average.mul_(d).add_(weight.mul_(1 - d))")),
    ("6.3", "wrong", "the model in place of its mean", AVERAGE.format("weight.mul_(1 - d).add_(average, alpha=d)")),
    ("6.3", "wrong", "copied", AVERAGE.format("average.copy_(weight)")),
    ("6.3", "right", "mul_ and add_", AVERAGE.format("average.mul_(d).add_(weight, alpha=1 - d)")),
    ("6.3", "right", "lerp_", AVERAGE.format("average.lerp_(weight, 1 - d)")),
    ("6.3", "right", "through .data", AVERAGE.format("average.data = d * average.data + (1 - d) * weight.data")),
    ("6.3", "right", "a whole state dict", AVERAGE.format("pass") + """
    state, other = averaged.state_dict(), model.state_dict()
    averaged.load_state_dict({key: d * state[key] + (1 - d) * other[key] for key in state})
"""),
]
