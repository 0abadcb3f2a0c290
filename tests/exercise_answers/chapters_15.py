"""Answers to the exercises of chapter 15, for tests/test_exercise_checks.py."""


def balanced(share: str, classes: str = "truth.unique()", last: str = "sum(found) / len(found)") -> str:
    return f"""
def balanced(truth, answers):
    found = [{share} for k in {classes}]
    return {last}
"""


def merged(last: str, first: str = "") -> str:
    return f"""
def merged(weight, A, B, alpha):
    {first or "r = A.shape[0]"}
    return {last}
"""


def iou(pixels: str = "both, either", last: str = "sum(found) / len(found)", skip: str = "either") -> str:
    return f"""
def mean_overlap(truth, answers, K):
    found = []
    for k in range(K):
        one, other = truth == k, answers == k
        both, either = (one & other).sum().item(), (one | other).sum().item()
        if {skip}:
            a, b = {pixels}
            found.append(a / max(b, 1))
    return {last}
"""


RECALL = "(answers[truth == k] == k).double().mean().item()"
ANSWERS = [
    ("15.1", "right", "a mean of means", balanced(RECALL)),
    (
        "15.1",
        "right",
        "scikit-learn's",
        "def balanced(truth, answers):\n    from sklearn.metrics import recall_score\n"
        "    return recall_score(truth, answers, average='macro', labels=truth.unique())\n",
    ),
    ("15.1", "right", "a tensor", balanced(RECALL, last="torch.tensor(found).mean()")),
    ("15.1", "wrong", "plain accuracy", balanced("(answers == truth).double().mean().item()", "[0]")),
    ("15.1", "wrong", "precision", balanced("(truth[answers == k] == k).double().mean().item()", "answers.unique()")),
    (
        "15.1",
        "wrong",
        "also classes without a photo",
        balanced(
            "((answers == k) & (truth == k)).sum().item() / max(1, (truth == k).sum().item())",
            "range(int(truth.max()) + 1)",
        ),
    ),
    ("15.1", "wrong", "the sum", balanced(RECALL, last="sum(found)")),
    ("15.1", "wrong", "the worst class", balanced(RECALL, last="min(found)")),
    (
        "15.1",
        "wrong",
        "answers in the place of truth",
        balanced("(truth[answers == k] == k).double().mean().item()", "answers.unique()", "max(found)"),
    ),
    ("15.2", "right", "the formula", merged("weight + alpha / r * B @ A")),
    ("15.2", "right", "by einsum", merged("weight + torch.einsum('or,ri->oi', B, A) * (alpha / r)")),
    (
        "15.2",
        "right",
        "a sum of outer products",
        merged("weight + alpha / r * sum(torch.outer(B[:, i], A[i]) for i in range(r))"),
    ),
    ("15.2", "wrong", "not divided by the rank", merged("weight + alpha * B @ A")),
    ("15.2", "wrong", "no alpha", merged("weight + B @ A")),
    ("15.2", "wrong", "the wrong rank", merged("weight + alpha / r * B @ A", "r = A.shape[1]")),
    ("15.2", "wrong", "the adapter alone", merged("alpha / r * B @ A")),
    ("15.2", "wrong", "changed in place", merged("weight.add_(alpha / r * B @ A)")),
    ("15.2", "wrong", "transposed", merged("(weight + alpha / r * B @ A).T")),
    ("15.2", "wrong", "subtracted", merged("weight - alpha / r * B @ A")),
    ("15.3", "right", "a table of both masks", """
def mean_overlap(truth, answers, K):
    table = torch.bincount((truth * K + answers).flatten(), minlength=K * K).reshape(K, K).double()
    both = table.diagonal()
    either = table.sum(dim=0) + table.sum(dim=1) - both
    return (both / either)[either > 0].mean()
"""),
    ("15.3", "wrong", "the book's own", "mean_overlap = lambda truth, answers, K: dense.mean_iou(truth, answers)"),
    ("15.3", "wrong", "image by image", iou().replace("mean_overlap", "of_one") + """
def mean_overlap(truth, answers, K):
    return sum(of_one(a, b, K) for a, b in zip(truth, answers)) / len(truth)
"""),
    ("15.3", "right", "class by class", iou()),
    (
        "15.3",
        "right",
        "by a table of counts",
        "def mean_overlap(truth, answers, K):\n    table = (truth * K + answers).flatten().bincount(minlength=K * K)\n"
        "    table = table.reshape(K, K).double()\n    both = table.diagonal()\n"
        "    either = table.sum(0) + table.sum(1) - both\n    return (both / either)[either > 0].mean().item()\n",
    ),
    ("15.3", "wrong", "absent classes count as 0", iou(skip="True")),
    ("15.3", "wrong", "absent classes count as 1", iou("(both, either) if either else (1, 1)", skip="True")),
    ("15.3", "wrong", "recall", iou("both, one.sum().item()")),
    ("15.3", "wrong", "precision", iou("both, other.sum().item()")),
    ("15.3", "wrong", "the Dice score", iou("2 * both, one.sum().item() + other.sum().item()")),
    ("15.3", "wrong", "only classes that both have", iou(skip="both", last="sum(found) / max(1, len(found))")),
    ("15.3", "wrong", "over all K", iou(last="sum(found) / K")),
    ("15.3", "wrong", "leaves out classes that the answers lack", """
def mean_overlap(truth, answers, K):
    found = []
    for k in range(K):
        one, other = truth == k, answers == k
        if other.any():
            found.append((one & other).sum().item() / (one | other).sum().item())
    return sum(found) / len(found)
"""),
    ("15.3", "wrong", "leaves out classes that the truth lacks", """
def mean_overlap(truth, answers, K):
    found = []
    for k in range(K):
        one, other = truth == k, answers == k
        if one.any():
            found.append((one & other).sum().item() / (one | other).sum().item())
    return sum(found) / len(found)
"""),
    ("15.3", "wrong", "never looks at the last class", """
def mean_overlap(truth, answers, K):
    found = []
    for k in range(K - 1):
        one, other = truth == k, answers == k
        if (one | other).any():
            found.append((one & other).sum().item() / (one | other).sum().item())
    return sum(found) / len(found)
"""),
    ("15.3", "wrong", "scikit-learn's", """
from sklearn.metrics import jaccard_score


def mean_overlap(truth, answers, K):
    return jaccard_score(truth.flatten(), answers.flatten(), average="macro")
"""),
    ("15.3", "wrong", "the book's own under another name", """
from vitutils.analysis.dense import mean_iou


def mean_overlap(truth, answers, K):
    return mean_iou(truth, answers)
"""),
    ("15.3", "right", "classes that are there, in numpy", """
import numpy as np


def mean_overlap(truth, answers, K):
    truth, answers = truth.numpy(), answers.numpy()
    there = np.union1d(truth, answers)
    return np.mean([((truth == k) & (answers == k)).sum() / ((truth == k) | (answers == k)).sum() for k in there])
"""),
]
