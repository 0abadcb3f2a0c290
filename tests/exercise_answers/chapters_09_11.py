"""Answers to the exercises of chapters 9 to 11, for tests/test_exercise_checks.py."""


def top_k(body: str) -> str:
    return f"def top_k_accuracy(logits, labels, k):\n    return {body}\n"


def mean_of_class(last: str, means: str = "torch.stack([x[y == k].mean(dim=0) for k in y.unique()])") -> str:
    return f"def nearest_mean(x, y, new_x):\n    means = {means}\n    return {last}\n"


def temperature(tried: str, loss: str = "F.cross_entropy(logits / T, labels)", last: str = "argmin") -> str:
    return f"""
def best_temperature(logits, labels):
    tried = {tried}
    losses = torch.stack([{loss} for T in tried])
    return tried[losses.{last}()].item()
"""


def rollout_by(steps: str, product: str = "step @ flow") -> str:
    return f"""
def rollout_max(maps):
    itself = torch.eye(maps.shape[-1])
    steps = {steps}
    flow, *later = steps.unbind(dim=1)
    for step in later:
        flow = {product}
    return flow
"""


def silenced(change: str, copied: str = "deepcopy(net)") -> str:
    return f"""
def without_head(net, layer, head):
    copied = {copied}
    attn = copied.blocks[layer].attn
    D, Dh = attn.proj.in_features, attn.proj.in_features // attn.num_heads
    here = slice(head * Dh, (head + 1) * Dh)
    with torch.no_grad():
        {change}
    return copied
"""


def repaired(p: str, s: str, loss: str) -> str:
    return f"def repaired(student, teacher, temperature):\n    p = {p}\n    s = {s}\n    return {loss}\n"


def target(body: str) -> str:
    return f"def target(labels, decisions, weight, K):\n    {body}\n"


GRID = "torch.logspace(-1, 1, 101)"
SUMMED = "(lambda s: s / s.sum(dim=-1, keepdim=True))"
P, S = "(teacher / temperature).softmax(dim=1)", "(student / temperature).log_softmax(dim=1)"
KL = 'F.kl_div(s, p, reduction="batchmean")'
ONE_HOT = "own, told = F.one_hot(labels, K), F.one_hot(decisions, K)\n    "

ANSWERS = [
    (
        "9.1",
        "right",
        "place by counting",
        top_k("((logits > logits.gather(1, labels[:, None])).sum(1) < k).double().mean()"),
    ),
    (
        "9.1",
        "right",
        "a loop in Python",
        """
def top_k_accuracy(logits, labels, k):
    hits = 0
    for row, label in zip(logits.tolist(), labels.tolist()):
        hits += label in sorted(range(len(row)), key=row.__getitem__)[-k:]
    return hits / len(labels)
""",
    ),
    (
        "9.1",
        "right",
        "sorted, a tensor",
        top_k("(logits.argsort(1, descending=True)[:, :k] == labels[:, None]).any(1).float().mean()"),
    ),
    ("9.1", "wrong", "the best alone", top_k("(logits.argmax(1) == labels).double().mean().item()")),
    (
        "9.1",
        "wrong",
        "the least probable",
        top_k("(logits.topk(k, 1, largest=False).indices == labels[:, None]).any(1).double().mean()"),
    ),
    ("9.1", "wrong", "labels below k", top_k("(labels < k).double().mean().item()")),
    ("9.1", "wrong", "a mean over all k", top_k("(logits.topk(k).indices == labels[:, None]).double().mean().item()")),
    (
        "9.1",
        "wrong",
        "over images, not classes",
        top_k("(logits.topk(k, dim=0).indices.T == labels[:5, None]).any(1).double().mean()"),
    ),
    ("9.1", "wrong", "per cent", top_k("100 * (logits.topk(k, 1).indices == labels[:, None]).any(1).double().mean()")),
    ("9.1", "wrong", "the k-th alone", top_k("(logits.topk(k).indices[:, -1] == labels).double().mean()")),
    ("9.1", "wrong", "no axis for the labels", top_k("(logits.topk(k).indices == labels).any(1).double().mean()")),
    (
        "9.2",
        "right",
        "a table by one-hot",
        mean_of_class("(F.normalize(new_x) @ F.normalize(means).T).argmax(dim=1)", "F.one_hot(y).float().T @ x"),
    ),
    (
        "9.2",
        "right",
        "cosine_similarity",
        mean_of_class("F.cosine_similarity(new_x[:, None], means[None], dim=-1).argmax(1)"),
    ),
    (
        "9.2",
        "right",
        "means alone scaled",
        mean_of_class("(new_x @ (means / means.norm(dim=1, keepdim=True)).T).argmax(dim=1)"),
    ),
    ("9.2", "wrong", "the nearest image", "def nearest_mean(x, y, new_x):\n    return knn_predict(x, y, new_x, k=1)\n"),
    (
        "9.2",
        "wrong",
        "all images vote",
        "def nearest_mean(x, y, new_x):\n    return knn_predict(x, y, new_x, k=len(x))\n",
    ),
    ("9.2", "wrong", "means not scaled", mean_of_class("(F.normalize(new_x) @ means.T).argmax(dim=1)")),
    ("9.2", "wrong", "distance, not cosine", mean_of_class("torch.cdist(new_x, means).argmin(dim=1)")),
    ("9.2", "wrong", "the smallest cosine", mean_of_class("(F.normalize(new_x) @ F.normalize(means).T).argmin(dim=1)")),
    (
        "9.2",
        "wrong",
        "the median",
        mean_of_class(
            "(F.normalize(new_x) @ F.normalize(means).T).argmax(dim=1)",
            "torch.stack([x[y == k].median(dim=0).values for k in y.unique()])",
        ),
    ),
    (
        "9.2",
        "wrong",
        "scaled over images",
        mean_of_class("(F.normalize(new_x, dim=0) @ F.normalize(means).T).argmax(1)"),
    ),
    (
        "9.2",
        "wrong",
        "the first image of each class",
        mean_of_class(
            "(F.normalize(new_x) @ F.normalize(means).T).argmax(dim=1)",
            "torch.stack([x[y == k][0] for k in y.unique()])",
        ),
    ),
    ("9.2", "wrong", "images scaled before the mean", """
def nearest_mean(x, y, new_x):
    x = F.normalize(x)
    means = torch.stack([x[y == k].mean(dim=0) for k in y.unique()])
    return (F.normalize(new_x) @ F.normalize(means).T).argmax(dim=1)
"""),
    ("9.2", "wrong", "two classes only", """
def nearest_mean(x, y, new_x):
    means = torch.stack([x[y == k].mean(dim=0) for k in (0, 1)])
    return (F.normalize(new_x) @ F.normalize(means).T).argmax(dim=1)
"""),
    ("9.2", "right", "one new image after the other", """
def nearest_mean(x, y, new_x):
    means = {int(k): x[y == k].mean(0) for k in y}
    best = [max(means, key=lambda k: F.cosine_similarity(one, means[k], dim=0)) for one in new_x]
    return torch.tensor(best)
"""),
    ("9.2", "right", "labels as floats", """
def nearest_mean(x, y, new_x):
    classes = y.unique()
    means = torch.stack([x[y == k].mean(dim=0) for k in classes])
    return classes.float()[(F.normalize(new_x) @ F.normalize(means).T).argmax(dim=1)]
"""),
    ("9.3", "right", "a finer grid, a tensor", temperature("torch.logspace(-1.2, 1.2, 301)").replace(".item()", "")),
    (
        "9.3",
        "right",
        "scikit's neighbour: scipy",
        """
from scipy.optimize import minimize_scalar
def best_temperature(logits, labels):
    found = minimize_scalar(lambda t: F.cross_entropy(logits / 2.0**t, labels).item(), bounds=(-6, 6), method="bounded")
    return 2.0**found.x
""",
    ),
    (
        "9.3",
        "right",
        "by gradient",
        """
def best_temperature(logits, labels):
    log_T = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_T], max_iter=50)
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / log_T.exp(), labels)
        loss.backward()
        return loss
    optimizer.step(closure)
    return log_T.exp().item()
""",
    ),
    ("9.3", "wrong", "only T of 1 or more", temperature("torch.logspace(0, 1, 51)")),
    ("9.3", "wrong", "whole numbers", temperature("torch.arange(1, 11)")),
    ("9.3", "wrong", "multiplies", temperature(GRID, "F.cross_entropy(logits * T, labels)")),
    ("9.3", "wrong", "the largest loss", temperature(GRID, last="argmax")),
    ("9.3", "wrong", "divides probabilities", temperature(GRID, "F.nll_loss((logits.softmax(1) / T).log(), labels)")),
    ("9.3", "wrong", "the most right answers", temperature(GRID, "((logits / T).argmax(1) != labels).double().mean()")),
    ("9.3", "wrong", "from a half to two", temperature("torch.linspace(0.5, 2, 61)")),
    ("9.3", "wrong", "the loss itself", temperature(GRID).replace("tried[losses.argmin()]", "losses.min()")),
    ("9.3", "wrong", "softmax twice", temperature(GRID, "F.cross_entropy((logits / T).softmax(1), labels)")),
    ("10.1", "right", "rounded", "by_hand = 13.66"),
    ("10.1", "right", "computed", "by_hand = 16 * (2 + 2**0.5) / 4"),
    (
        "10.1",
        "right",
        "a tensor",
        "by_hand = torch.cdist(g := 16 * torch.cartesian_prod(torch.arange(2.0), torch.arange(2.0)), g).mean()",
    ),
    ("10.1", "wrong", "itself left out", "by_hand = 18.21"),
    ("10.1", "wrong", "the diagonal left out", "by_hand = 10.67"),
    ("10.1", "wrong", "round the corner", "by_hand = 16.0"),
    ("10.1", "wrong", "in patches", "by_hand = 0.85"),
    ("10.1", "wrong", "one decimal", "by_hand = 13.7"),
    ("10.1", "wrong", "in words", "by_hand = '13.66 pixels'"),
    ("10.2", "right", "amax", rollout_by(f"{SUMMED}(maps.amax(dim=2) + itself)")),
    (
        "10.2",
        "right",
        "max and F.normalize",
        rollout_by("F.normalize(maps.max(dim=2).values + itself, p=1, dim=-1)").replace(
            "def", "import torch.nn.functional as F\ndef", 1
        ),
    ),
    (
        "10.2",
        "right",
        "layer by layer",
        """
def rollout_max(maps):
    flow = torch.eye(maps.shape[-1]).repeat(len(maps), 1, 1)
    for layer in range(maps.shape[1]):
        step = maps[:, layer].max(dim=1)[0] + torch.eye(maps.shape[-1])
        flow = torch.bmm(step / step.sum(2, keepdim=True), flow)
    return flow
""",
    ),
    ("10.2", "wrong", "the mean", rollout_by("(maps.mean(dim=2) + itself) / 2")),
    ("10.2", "wrong", "divided by 2", rollout_by("(maps.amax(dim=2) + itself) / 2")),
    ("10.2", "wrong", "divided before the identity", rollout_by(f"({SUMMED}(maps.amax(dim=2)) + itself) / 2")),
    ("10.2", "wrong", "the wrong way round", rollout_by(f"{SUMMED}(maps.amax(dim=2) + itself)", "flow @ step")),
    ("10.2", "wrong", "no identity", rollout_by(f"{SUMMED}(maps.amax(dim=2))")),
    (
        "10.2",
        "wrong",
        "columns sum to 1",
        rollout_by("(lambda s: s / s.sum(dim=-2, keepdim=True))(maps.amax(dim=2) + itself)"),
    ),
    ("10.2", "wrong", "the last layer alone", rollout_by(f"{SUMMED}(maps.amax(dim=2) + itself)[:, -1:]")),
    (
        "10.2",
        "wrong",
        "divided at the end alone",
        rollout_by("maps.amax(dim=2) + itself").replace("return flow", "return flow / flow.sum(dim=-1, keepdim=True)"),
    ),
    ("10.2", "wrong", "the head with the largest sum", rollout_by(f"{SUMMED}(maps[:, :, 0] + itself)")),
    ("10.3", "right", "columns of the output layer", silenced("attn.proj.weight[:, here] = 0")),
    (
        "10.3",
        "right",
        "values and their bias",
        silenced("v = slice(2 * D + here.start, 2 * D + here.stop); attn.qkv.weight[v] = 0; attn.qkv.bias[v] = 0"),
    ),
    (
        "10.3",
        "right",
        "a hook on the copy",
        silenced(
            "attn.proj.register_forward_pre_hook(lambda _, args: torch.cat([args[0][..., : here.start], "
            "0 * args[0][..., here], args[0][..., here.stop :]], dim=-1))"
        ),
    ),
    (
        "10.3",
        "right",
        "a new parameter",
        silenced(
            "weight = attn.proj.weight.clone(); weight[:, here] = 0; attn.proj.weight = torch.nn.Parameter(weight)"
        ),
    ),
    ("10.3", "wrong", "no copy", silenced("attn.proj.weight[:, here] = 0", "net")),
    ("10.3", "wrong", "a shallow copy", silenced("attn.proj.weight[:, here] = 0", "__import__('copy').copy(net)")),
    ("10.3", "wrong", "rows of the output layer", silenced("attn.proj.weight[here] = 0")),
    ("10.3", "wrong", "even maps", silenced("attn.qkv.weight[here] = 0; attn.qkv.bias[here] = 0")),
    ("10.3", "wrong", "values without their bias", silenced("attn.qkv.weight[2 * D :][here] = 0")),
    ("10.3", "wrong", "keys", silenced("attn.qkv.weight[D : 2 * D][here] = 0; attn.qkv.bias[D : 2 * D][here] = 0")),
    ("10.3", "wrong", "another head", silenced("attn.proj.weight[:, (head - 1) * Dh : head * Dh or None] = 0")),
    ("10.3", "wrong", "all heads", silenced("attn.proj.weight[:] = 0")),
    ("10.3", "wrong", "every layer", silenced("[b.attn.proj.weight[:, here].zero_() for b in copied.blocks]")),
    ("10.3", "wrong", "a copy and no more", silenced("pass")),
    ("10.3", "wrong", "the output's bias too", silenced("attn.proj.weight[:, here] = 0; attn.proj.bias[:] = 0")),
    ("11.1", "right", "rounded", "by_hand = 4.93"),
    ("11.1", "right", "computed", "import math\nby_hand = 2 / math.log(0.6 / 0.4)"),
    ("11.1", "right", "a tensor", "by_hand = 2 / torch.tensor(1.5).log()"),
    ("11.1", "wrong", "by proportion", "by_hand = 1.47"),
    ("11.1", "wrong", "upside down", "by_hand = 0.2"),
    ("11.1", "wrong", "the odds without the logarithm", "by_hand = 2 / 1.5"),
    ("11.1", "wrong", "base 10", "by_hand = 11.36"),
    ("11.1", "wrong", "one decimal", "by_hand = 4.9"),
    ("11.1", "wrong", "40 per cent", "by_hand = -4.93"),
    ("11.1", "wrong", "nothing to divide by", "by_hand = 0"),
    ("11.2", "right", "the three repaired", repaired(P, S, f"temperature**2 * {KL}")),
    ("11.2", "right", "the formula", repaired(P, S, "temperature**2 * (p * (p.log() - s)).sum(dim=1).mean()")),
    (
        "11.2",
        "right",
        "logarithms both",
        repaired(
            P.replace("softmax", "log_softmax"),
            S,
            'temperature * temperature * F.kl_div(s, p, reduction="none", log_target=True).sum(1).mean()',
        ),
    ),
    (
        "11.2",
        "right",
        "a sum over the batch",
        repaired(P, S, 'temperature**2 * F.kl_div(s, p, reduction="sum") / len(s)'),
    ),
    ("11.2", "wrong", "as it was", repaired(P.replace("dim=1", "dim=0"), S, 'F.kl_div(s, p, reduction="sum")')),
    ("11.2", "wrong", "no square", repaired(P, S, f"temperature * {KL}")),
    ("11.2", "wrong", "no factor", repaired(P, S, KL)),
    ("11.2", "wrong", "a mean over classes too", repaired(P, S, 'temperature**2 * F.kl_div(s, p, reduction="mean")')),
    ("11.2", "wrong", "the axis left", repaired(P.replace("dim=1", "dim=0"), S, f"temperature**2 * {KL}")),
    ("11.2", "wrong", "the sum left", repaired(P, S, 'temperature**2 * F.kl_div(s, p, reduction="sum")')),
    ("11.2", "wrong", "cross-entropy", repaired(P, S, "temperature**2 * F.cross_entropy(student / temperature, p)")),
    (
        "11.2",
        "wrong",
        "the other way round",
        repaired(
            P.replace("softmax", "log_softmax"),
            S.replace("log_", ""),
            'temperature**2 * F.kl_div(p, s, reduction="batchmean")',
        ),
    ),
    ("11.2", "wrong", "soft_loss called", repaired("teacher", "student", "soft_loss(s, p, temperature)")),
    ("11.2", "wrong", "the teacher at temperature 1", repaired("teacher.softmax(dim=1)", S, f"temperature**2 * {KL}")),
    ("11.3", "right", "one-hot", target(ONE_HOT + "return (1 - weight) * own + weight * told")),
    (
        "11.3",
        "right",
        "rows of an identity",
        target("return torch.lerp(torch.eye(K)[labels], torch.eye(K)[decisions], weight)"),
    ),
    (
        "11.3",
        "right",
        "scatter_add",
        target(
            "share = torch.ones(len(labels), 1)\n    "
            "return (torch.zeros(len(labels), K).scatter_add(1, labels[:, None], "
            "(1 - weight) * share).scatter_add(1, decisions[:, None], weight * share))"
        ),
    ),
    ("11.3", "wrong", "weights exchanged", target(ONE_HOT + "return weight * own + (1 - weight) * told")),
    ("11.3", "wrong", "sums to more than 1", target(ONE_HOT + "return own + weight * told")),
    (
        "11.3",
        "wrong",
        "overwritten where they agree",
        target(
            "found = torch.zeros(len(labels), K)\n    found[range(len(labels)), labels] = 1 - weight\n    "
            "found[range(len(labels)), decisions] = weight\n    return found"
        ),
    ),
    ("11.3", "wrong", "whole numbers", target(ONE_HOT + "return ((1 - weight) * own + weight * told).long()")),
    ("11.3", "wrong", "the decision alone", target(ONE_HOT + "return told.float()")),
    ("11.3", "wrong", "half of each", target(ONE_HOT + "return (own + told) / 2")),
    (
        "11.3",
        "wrong",
        "classes mixed as numbers",
        target("return F.one_hot(((1 - weight) * labels + weight * decisions).round().long(), K).float()"),
    ),
    ("11.3", "wrong", "smoothed", target(ONE_HOT + "return 0.9 * ((1 - weight) * own + weight * told) + 0.1 / K")),
]
