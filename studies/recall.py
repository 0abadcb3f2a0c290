"""Chapter 2's study: associative recall by one attention layer and by an LSTM of as many parameters.

Parts, in the order they run:
    search  each net at each number of pairs and each peak rate, seed 100; below, each uses its rate of the lowest loss
    main    both nets at each number of pairs, 5 seeds
    wide    an LSTM of three times the width, 8 pairs, its own search, 3 seeds
    longer  the LSTM with four times the steps, 3 seeds
    open    the LSTM with its forget gates open at the start, at each number of pairs, its own search, 3 seeds; its
            grid of rates begins and ends one higher, as the best of the others' grid would lie at the upper edge

Every sequence is drawn afresh, in training and for the accuracy, which is measured on 4,000 sequences of a seed that
no training uses. One thread a run.
"""

import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from studies.harness import main
from studies.shared import by_loss, constants, grid, rate_names, rate_of
from studies.store import Store
from vitutils import check
from vitutils.models.recall import RecallAttention, RecallLSTM, recall_batch, train_recall

WIDTHS = {"attention": 64, "lstm": 42, "wide lstm": 128, "open lstm": 42}
FORGET_BIAS = 3.0  # of the open lstm, added at the start
PAIRS = (2, 4, 8, 16, 32)
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
OPEN_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
STEPS = 2_000
SEARCH_SEED = 100
SEEDS = (0, 1, 2, 3, 4)
WIDE_PAIRS = (8,)
LONGER_PAIRS = (2, 4, 8, 16)
LONGER_STEPS = 4 * STEPS
FEWER_SEEDS = SEEDS[:3]
SEQUENCES = 4_000
TEST_SEED = 1_000_000
KEY = ("part", "net", "pairs", "variant", "seed")


def make_net(net: str, seed: int) -> torch.nn.Module:
    """A fresh net; the same seed gives the same weights."""
    torch.manual_seed(seed)
    if net == "attention":
        return RecallAttention(WIDTHS[net])
    return RecallLSTM(WIDTHS[net], FORGET_BIAS if net == "open lstm" else 0.0)


def runs(store: Store) -> Iterator[dict]:
    """Yield the key fields of every run, in order."""
    both, searched = ("attention", "lstm"), {"part": "search", "seed": SEARCH_SEED}
    yield from grid(KEY, **searched, net=both, pairs=PAIRS, variant=rate_names(RATES))
    yield from grid(KEY, part="main", net=both, variant="best", seed=SEEDS, pairs=PAIRS)
    yield from grid(KEY, **searched, net="wide lstm", pairs=WIDE_PAIRS, variant=rate_names(RATES))
    yield from grid(KEY, part="wide", net="wide lstm", variant="best", seed=FEWER_SEEDS, pairs=WIDE_PAIRS)
    longer = f"{LONGER_STEPS} steps"
    yield from grid(KEY, part="longer", net="lstm", variant=longer, seed=FEWER_SEEDS, pairs=LONGER_PAIRS)
    yield from grid(KEY, **searched, net="open lstm", pairs=PAIRS, variant=rate_names(OPEN_RATES))
    yield from grid(KEY, part="open", net="open lstm", variant="best", seed=FEWER_SEEDS, pairs=PAIRS)


def steps_of(name: dict) -> int:
    """How long a run trains."""
    return LONGER_STEPS if name["part"] == "longer" else STEPS


@torch.inference_mode()
def evaluate(model: torch.nn.Module, pairs: int, seed: int) -> tuple[float, float, float]:
    """Accuracy, loss and, for attention, the mean weight on the matching pair (nan for an LSTM)."""
    generator = torch.Generator().manual_seed(TEST_SEED + seed)
    keys, values, answers, place = recall_batch(SEQUENCES, pairs, generator)
    weight = torch.tensor(float("nan"))
    if isinstance(model, RecallAttention):
        logits, attn = model(keys, values, need_weights=True)
        weight = attn[:, 0].gather(1, place[:, None]).mean()
    else:
        logits = model(keys, values)
    accuracy = (logits.argmax(dim=1) == answers).double().mean()
    return accuracy.item(), F.cross_entropy(logits, answers).item(), weight.item()


def run(store: Store, name: dict) -> dict:
    """Train one net and return its row."""
    lr = rate_of(store, name, RATES, by_loss, net=name["net"], pairs=name["pairs"])
    steps = steps_of(name)
    model = make_net(name["net"], name["seed"])
    start = time.perf_counter()
    _, accuracies = train_recall(model, name["pairs"], lr, steps, name["seed"])
    seconds = time.perf_counter() - start
    accuracy, loss, weight = evaluate(model, name["pairs"], name["seed"])
    curve = torch.tensor(accuracies).reshape(40, -1).mean(dim=1)
    return {
        **name,
        "lr": lr,
        "steps": steps,
        "width": WIDTHS[name["net"]],
        "parameters": check.count_parameters(model),
        "accuracy": round(accuracy, 5),
        "loss": round(loss, 6),
        "weight_on_match": round(weight, 5),
        "accuracy_by_step": " ".join(f"{value:.4f}" for value in curve.tolist()),
        "seconds": round(seconds, 1),
    }


def replay(store: Store) -> dict:
    """The second run: attention, two pairs, at a rate where it learns."""
    return run(store, list(runs(store))[1])


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    names = "WIDTHS PAIRS RATES OPEN_RATES STEPS SEARCH_SEED SEEDS WIDE_PAIRS LONGER_PAIRS LONGER_STEPS FORGET_BIAS"
    return constants(globals(), *names.split(), "SEQUENCES", "TEST_SEED")


if __name__ == "__main__":
    main("recall")
