"""Chapter 2's study: associative recall by one attention layer and by an LSTM of as many parameters.

    python -m studies.recall              runs what is missing, appends to results/recall.csv
    python -m studies.recall --shard 0/2  every second run; start both shards at once on two cores

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

import argparse
import time

import torch
import torch.nn.functional as F

from studies.store import Store
from vitutils import check
from vitutils.attention import RecallAttention, RecallLSTM, recall_batch, train_recall

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


def best_rate(store: Store, net: str, pairs: int) -> float:
    """The peak rate with the lowest loss in the search; waits while the other shard still searches."""
    while True:
        rows = [row for row in store.rows() if row["part"] == "search" and row["net"] == net]
        rows = [row for row in rows if row["pairs"] == str(pairs)]
        if len(rows) == len(RATES):
            break
        print(f"waiting for the search of {net}, {pairs} pairs: {len(rows)} of {len(RATES)} runs", flush=True)
        time.sleep(20)
    return float(min(rows, key=lambda row: float(row["loss"]))["lr"])


def runs():
    """Yield (key fields, peak rate or None for the best one, steps) of every run, in order."""

    def search(net, sizes, rates=RATES):
        for pairs in sizes:
            for lr in rates:
                name = {"part": "search", "net": net, "pairs": pairs, "variant": f"lr {lr:g}", "seed": SEARCH_SEED}
                yield name, lr, STEPS

    def repeat(part, net, sizes, seeds, variant="best", steps=STEPS):
        for seed in seeds:
            for pairs in sizes:
                yield {"part": part, "net": net, "pairs": pairs, "variant": variant, "seed": seed}, None, steps

    for net in ("attention", "lstm"):
        yield from search(net, PAIRS)
    for net in ("attention", "lstm"):
        yield from repeat("main", net, PAIRS, SEEDS)
    yield from search("wide lstm", WIDE_PAIRS)
    yield from repeat("wide", "wide lstm", WIDE_PAIRS, FEWER_SEEDS)
    yield from repeat("longer", "lstm", LONGER_PAIRS, FEWER_SEEDS, f"{LONGER_STEPS} steps", LONGER_STEPS)
    yield from search("open lstm", PAIRS, OPEN_RATES)
    yield from repeat("open", "open lstm", PAIRS, FEWER_SEEDS)


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


def run(store: Store, name: dict, lr: float | None, steps: int) -> dict:
    """Train one net and return its row."""
    lr = best_rate(store, name["net"], name["pairs"]) if lr is None else lr
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


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    return {
        "widths": WIDTHS,
        "pairs": PAIRS,
        "rates": RATES,
        "open_rates": OPEN_RATES,
        "steps": STEPS,
        "search_seed": SEARCH_SEED,
        "seeds": SEEDS,
        "wide_pairs": WIDE_PAIRS,
        "longer_pairs": LONGER_PAIRS,
        "longer_steps": LONGER_STEPS,
        "forget_bias": FORGET_BIAS,
        "sequences": SEQUENCES,
        "test_seed": TEST_SEED,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard", default="0/1", help="I/N: every N-th run, starting with the I-th")
    shard, shards = map(int, parser.parse_args().shard.split("/"))
    torch.set_num_threads(1)
    store = Store(__file__, KEY)
    waiting = [entry for n, entry in enumerate(runs()) if n % shards == shard and not store.has(entry[0])]
    for name, lr, steps in waiting:
        row = run(store, name, lr, steps)
        store.append(row)
        print(*(f"{key}={value}" for key, value in row.items()), flush=True)
    store.describe(configuration(), sum(float(row["seconds"]) for row in store.rows()))


if __name__ == "__main__":
    main()
