"""Answers to the exercises of chapters 7 and 8: see tests/test_exercise_checks.py."""


def paired(body: str) -> str:
    return f"import statistics\ndef paired(first, second):\n    apart = first - second\n    return {body}\n"


def needed(between: str, condition: str = "low <= target <= high", last: str = "None") -> str:
    return f"""
def images_needed(curve, target):
    for (a, low), (b, high) in pairwise(sorted(curve.items())):
        if {condition}:
            share = (target - low) / (high - low)
            return {between}
    return {last}
"""


def power(body: str) -> str:
    return f"""
def fit_power(sizes, errors):
    x, y = np.log(sizes), np.log(errors)
    {body}
"""


def counted(body: str) -> str:
    return f"def attention_parameters(dim, heads, dim_head):\n    inner = heads * dim_head\n    return {body}\n"


def registers(body: str) -> str:
    return f"""
def logits_with_registers(simple, registers, images):
    x = simple.to_patch_embedding(images)
    x = x + simple.pos_embedding
    B, N, D = x.shape
    R = len(registers)
    {body}
"""


def probe(body: str) -> str:
    return f"""
def ready_to_probe(vit, num_classes):
    head = nn.Linear(vit.mlp_head.in_features, num_classes)
    zero = nn.Linear(vit.mlp_head.in_features, num_classes)
    for p in zero.parameters():
        nn.init.zeros_(p)
    {body}
    return new
"""


ON_A_LOG_AXIS = "a * (b / a) ** share"
ANSWERS = [
    ("7.1", "right", "by the standard library", paired("statistics.fmean(apart), statistics.stdev(apart)")),
    ("7.1", "right", "an array of two", paired("np.array([apart.mean(), np.sqrt(apart.var(ddof=1))])")),
    ("7.1", "wrong", "ddof left at 0", paired("apart.mean(), apart.std()")),
    ("7.1", "wrong", "the variance", paired("apart.mean(), apart.var(ddof=1)")),
    ("7.1", "wrong", "the standard error", paired("apart.mean(), apart.std(ddof=1) / len(apart) ** 0.5")),
    ("7.1", "wrong", "the spread of unpaired runs",
     paired("apart.mean(), math.hypot(first.std(ddof=1), second.std(ddof=1))")),
    ("7.1", "wrong", "the other way round", paired("-apart.mean(), apart.std(ddof=1)")),
    ("7.1", "wrong", "distances without their sign", paired("abs(apart).mean(), abs(apart).std(ddof=1)")),
    ("7.1", "wrong", "pairs the best with the best",
     paired("apart.mean(), (np.sort(first) - np.sort(second)).std(ddof=1)")),
    ("7.1", "wrong", "the mean alone", paired("apart.mean()")),
    ("7.2", "right", "by logarithms", needed("math.exp(math.log(a) + share * (math.log(b) - math.log(a)))")),
    ("7.2", "right", "by powers of ten", needed("10 ** ((1 - share) * math.log10(a) + share * math.log10(b))")),
    ("7.2", "right", "by np.interp", """
def images_needed(curve, target):
    sizes, accuracies = np.array(sorted(curve)), [curve[n] for n in sorted(curve)]
    if target > accuracies[-1]:
        return None
    return np.exp(np.interp(target, accuracies, np.log(sizes)))
"""),
    ("7.2", "wrong", "straight on the plain axis", needed("a + share * (b - a)")),
    ("7.2", "wrong", "strictly between", needed(ON_A_LOG_AXIS, "low < target < high")),
    ("7.2", "wrong", "never at the lower end", needed(ON_A_LOG_AXIS, "low < target <= high")),
    ("7.2", "wrong", "never at the upper end", needed(ON_A_LOG_AXIS, "low <= target < high")),
    ("7.2", "wrong", "the next size", needed("b")),
    ("7.2", "wrong", "goes on past the last size", needed(ON_A_LOG_AXIS, "target <= high or b == max(curve)")),
    ("7.2", "wrong", "the last size where it is never reached", needed(ON_A_LOG_AXIS, last="b")),
    ("7.2", "wrong", "infinity where it is never reached", needed(ON_A_LOG_AXIS, last="math.inf")),
    ("7.2", "wrong", "the middle of the two sizes", needed("(a * b) ** 0.5")),
    ("7.2", "wrong", "from the first size to the last", """
def images_needed(curve, target):
    (a, low), *_, (b, high) = curve.items()
    return a * (b / a) ** ((target - low) / (high - low)) if target <= high else None
"""),
    ("7.2", "wrong", "a factor of ten between any two sizes", """
def images_needed(curve, target):
    for (a, low), (b, high) in pairwise(sorted(curve.items())):
        if low <= target <= high:
            return a * 10 ** ((target - low) / (high - low))
    return None
"""),
    ("7.2", "right", "rounded to whole images", """
def images_needed(curve, target):
    for (a, low), (b, high) in pairwise(sorted(curve.items())):
        if low <= target <= high:
            return round(a * (b / a) ** ((target - low) / (high - low)))
    return None
"""),
    ("7.2", "right", "a numpy array of one number", """
def images_needed(curve, target):
    sizes, accuracies = np.array(sorted(curve)), np.array([curve[n] for n in sorted(curve)])
    if target > accuracies[-1]:
        return None
    return np.array(np.exp(np.interp(target, accuracies, np.log(sizes))))
"""),
    ("7.3", "right", "by NumPy's least squares", power(
        "(slope, height), *_ = np.linalg.lstsq(np.stack([x, np.ones_like(x)], 1), y, rcond=None)\n"
        "    return [math.exp(height), -slope]")),
    ("7.3", "right", "by hand", power(
        "b = -((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()\n"
        "    return np.array([np.exp(y.mean() + b * x.mean()), b])")),
    ("7.3", "right", "by logarithms to the base of ten", power(
        "slope, height = np.polyfit(np.log10(sizes), np.log10(errors), 1)\n    return 10**height, -slope")),
    ("7.3", "wrong", "a slope for an exponent", power("s, h = np.polyfit(x, y, 1)\n    return np.exp(h), s")),
    ("7.3", "wrong", "the logarithm of a", power("s, h = np.polyfit(x, y, 1)\n    return h, -s")),
    ("7.3", "wrong", "b before a", power("s, h = np.polyfit(x, y, 1)\n    return -s, np.exp(h)")),
    ("7.3", "wrong", "two bases", power(
        "s, h = np.polyfit(np.log10(sizes), np.log10(errors), 1)\n    return np.exp(h), -s")),
    ("7.3", "wrong", "the two ends alone", power(
        "b = (y[0] - y[-1]) / (x[-1] - x[0])\n    return np.exp(y[0] + b * x[0]), b")),
    ("7.3", "wrong", "the mean of the slopes between neighbours", power(
        "b = -(np.diff(y) / np.diff(x)).mean()\n    return np.exp((y + b * x).mean() + 0.1), b")),
    ("7.3", "wrong", "least squares on the errors themselves", """
def fit_power(sizes, errors):
    from scipy.optimize import curve_fit
    return curve_fit(lambda n, a, b: a * n**-b, np.array(sizes, float), errors, p0=(1, 0.5))[0]
"""),
    ("7.3", "wrong", "one logarithm", power("s, h = np.polyfit(x, errors, 1)\n    return h, -s")),
    ("8.1", "right", "in one sum", counted("4 * dim * inner + 3 * dim")),
    ("8.1", "right", "layer by layer", counted("sum([dim, dim, dim * inner * 3, (inner + 1) * dim])")),
    ("8.1", "wrong", "the paper's 4 D^2", counted("4 * dim**2 + 3 * dim")),
    ("8.1", "wrong", "no norm", counted("4 * dim * inner + dim")),
    ("8.1", "wrong", "a norm without a shift", counted("4 * dim * inner + 2 * dim")),
    ("8.1", "wrong", "no bias in the output", counted("4 * dim * inner + 2 * dim")),
    ("8.1", "wrong", "a bias in qkv", counted("4 * dim * inner + 3 * inner + 3 * dim")),
    ("8.1", "wrong", "the output's bias as wide as the heads", counted("4 * dim * inner + 2 * dim + inner")),
    ("8.1", "wrong", "one head alone", counted("4 * dim * dim_head + 3 * dim")),
    ("8.1", "wrong", "builds the layer and counts", """
def attention_parameters(dim, heads, dim_head):
    from vit_pytorch.vit import Attention
    return check.count_parameters(Attention(dim, heads, dim_head))
"""),
    ("8.2", "right", "in front, and taken off again", registers(
        "x = torch.cat([registers[None].repeat(B, 1, 1), x], dim=1)\n"
        "    return simple.linear_head(simple.to_latent(simple.transformer(x)[:, R:].mean(1)))")),
    ("8.2", "right", "by einops", registers(
        "from einops import pack, reduce, repeat\n"
        "    x, _ = pack([x, repeat(registers, 'r d -> b r d', b=B)], 'b * d')\n"
        "    return simple.linear_head(reduce(simple.transformer(x)[:, :-R], 'b n d -> b d', 'mean'))")),
    ("8.2", "wrong", "the mean over registers too", registers(
        "x = torch.cat([x, registers.expand(B, -1, -1)], dim=1)\n"
        "    return simple.linear_head(simple.transformer(x).mean(dim=1))")),
    ("8.2", "wrong", "the registers alone go on", registers(
        "x = torch.cat([x, registers.expand(B, -1, -1)], dim=1)\n"
        "    return simple.linear_head(simple.transformer(x)[:, N:].mean(dim=1))")),
    ("8.2", "wrong", "no registers", registers("return simple.linear_head(simple.transformer(x).mean(dim=1))")),
    ("8.2", "wrong", "taken off before the blocks", registers(
        "x = torch.cat([x, registers.expand(B, -1, -1)], dim=1)[:, :N]\n"
        "    return simple.linear_head(simple.transformer(x).mean(dim=1))")),
    ("8.2", "wrong", "the first token for the mean", registers(
        "x = torch.cat([x, registers.expand(B, -1, -1)], dim=1)\n"
        "    return simple.linear_head(simple.transformer(x)[:, 0])")),
    ("8.2", "wrong", "in front, taken off behind", registers(
        "x = torch.cat([registers.expand(B, -1, -1), x], dim=1)\n"
        "    return simple.linear_head(simple.transformer(x)[:, :N].mean(dim=1))")),
    ("8.2", "wrong", "no positions", registers(
        "x = torch.cat([x - simple.pos_embedding, registers.expand(B, -1, -1)], dim=1)\n"
        "    return simple.linear_head(simple.transformer(x)[:, :N].mean(dim=1))")),
    ("8.2", "wrong", "no batch axis", registers(
        "x = torch.cat([x, registers], dim=1)\n"
        "    return simple.linear_head(simple.transformer(x)[:, :N].mean(dim=1))")),
    ("8.2", "wrong", "a batch of two, come what may", registers(
        "x = torch.cat([x, registers.expand(2, -1, -1)], dim=1)\n"
        "    return simple.linear_head(simple.transformer(x)[:, :N].mean(dim=1))")),
    ("8.2", "wrong", "takes off four, come what may", registers(
        "x = torch.cat([x, registers.expand(B, -1, -1)], dim=1)\n"
        "    return simple.linear_head(simple.transformer(x)[:, :-4].mean(dim=1))")),
    ("8.2", "wrong", "no head", registers(
        "x = torch.cat([x, registers.expand(B, -1, -1)], dim=1)\n    return simple.transformer(x)[:, :N].mean(dim=1)")),
    ("8.3", "right", "a loop that freezes", probe(
        "new = copy.deepcopy(vit)\n    for p in new.parameters():\n        p.requires_grad = False\n"
        "    new.mlp_head = zero")),
    ("8.3", "right", "the head first, then all but the head frozen", probe(
        "new = copy.deepcopy(vit)\n    new.mlp_head = zero\n    for name, p in new.named_parameters():\n"
        "        p.requires_grad_(name.startswith('mlp_head'))")),
    ("8.3", "right", "a new network with copied weights", probe(
        "new = ViT(**toy | {'num_classes': num_classes})\n    state = {k: v.clone() for k, v in "
        "vit.state_dict().items() if not k.startswith('mlp_head')}\n    new.load_state_dict(state, strict=False)\n"
        "    new.requires_grad_(False)\n    new.mlp_head = zero")),
    ("8.3", "wrong", "no copy", probe("new = vit.requires_grad_(False)\n    new.mlp_head = zero")),
    ("8.3", "wrong", "a shallow copy", probe("new = copy.copy(vit).requires_grad_(False)\n    new.mlp_head = zero")),
    ("8.3", "wrong", "freezes the head too", probe(
        "new = copy.deepcopy(vit)\n    new.mlp_head = zero\n    new.requires_grad_(False)")),
    ("8.3", "wrong", "freezes nothing", probe("new = copy.deepcopy(vit)\n    new.mlp_head = zero")),
    ("8.3", "wrong", "a head that starts at random", probe(
        "new = copy.deepcopy(vit).requires_grad_(False)\n    new.mlp_head = head")),
    ("8.3", "wrong", "weights at zero, biases at random", probe(
        "new = copy.deepcopy(vit).requires_grad_(False)\n    nn.init.zeros_(head.weight)\n    new.mlp_head = head")),
    ("8.3", "wrong", "a head under another name", probe(
        "new = copy.deepcopy(vit).requires_grad_(False)\n    new.head = zero")),
    ("8.3", "wrong", "the same storage, wrapped anew", probe(
        "new = ViT(**toy)\n    new.load_state_dict(vit.state_dict(), assign=True)\n"
        "    new.requires_grad_(False)\n    new.mlp_head = zero")),
    ("8.3", "wrong", "one part of the same storage", probe(
        "new = copy.deepcopy(vit).requires_grad_(False)\n    new.pos_embedding.data = vit.pos_embedding.data\n"
        "    new.mlp_head = zero")),
    ("8.3", "wrong", "the original frozen", probe(
        "vit.requires_grad_(False)\n    new = copy.deepcopy(vit)\n    new.mlp_head = zero")),
    ("8.3", "wrong", "a part of the original frozen", probe(
        "vit.transformer.requires_grad_(False)\n    new = copy.deepcopy(vit).requires_grad_(False)\n"
        "    new.mlp_head = zero")),
    ("8.3", "wrong", "fresh features", probe(
        "new = ViT(**toy).requires_grad_(False)\n    new.mlp_head = zero")),
]  # fmt: skip
