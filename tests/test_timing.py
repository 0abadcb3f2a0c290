"""Candidates take turns; memory kept for the backward pass is counted storage by storage."""

import pytest
import torch
from torch import nn

from vitutils import timing


def test_candidates_take_turns_and_the_warm_up_is_not_counted():
    calls = []
    seconds = timing.race({name: lambda name=name: calls.append(name) for name in "ab"}, repeats=3)
    assert calls == list("ab" + "ab" + "ba" + "ab")
    assert list(seconds) == ["a", "b"] and all(len(runs) == 3 for runs in seconds.values())


def test_a_race_is_won_by_the_faster(monkeypatch):
    now = [0.0]  # a clock of our own: a busy machine stops either of them for longer than they take

    def takes(duration):
        now[0] += duration

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    seconds = timing.race({"slow": lambda: takes(4.0), "fast": lambda: takes(0.5)}, repeats=3, warmup=2)
    assert seconds == {"slow": [4.0] * 3, "fast": [0.5] * 3}


@pytest.mark.parametrize("candidates, repeats", [({}, 3), ({"a": lambda: None}, 0)])
def test_a_race_of_nothing_is_refused(candidates, repeats):
    with pytest.raises(ValueError, match="at least one candidate and one repeat"):
        timing.race(candidates, repeats)


def test_what_cannot_be_timed_is_refused():
    for given, message in (
        (dict(candidates={"a": lambda: None}, warmup=-1), "0 warm-ups or more"),
        (dict(candidates={"a": lambda: None}, repeats=2.5), "at least one candidate and one repeat"),
        (dict(candidates={"a": 3, "b": lambda: None}), "got a result already: a"),
    ):
        with pytest.raises(ValueError, match=message):
            timing.race(**given)
    with pytest.raises(ValueError, match="got a Tensor: lambda"):
        timing.kept_bytes(torch.ones(3))


def test_kept_bytes_counts_what_has_no_numbers_and_what_is_sparse():
    x = torch.empty(10, 4, device="meta", requires_grad=True)
    assert timing.kept_bytes(lambda: (x.exp() * x).sum()) == 2 * x.nbytes
    few = torch.eye(4).to_sparse()
    kept = timing.kept_bytes(lambda: torch.sparse.mm(few, torch.ones(4, 3, requires_grad=True)))
    assert kept == 4 * 4 + 2 * 4 * 8  # four values and where they stand


def test_kept_bytes_counts_each_storage_once():
    x = torch.randn(10, 4, requires_grad=True)
    assert timing.kept_bytes(lambda: x * x) == x.nbytes  # both factors are x
    assert timing.kept_bytes(lambda: (x.exp() * x).sum()) == 2 * x.nbytes  # the exponential, twice, and x
    assert timing.kept_bytes(lambda: x + x) == 0


def test_kept_bytes_leaves_out_what_is_there_anyway():
    layer, x = nn.Linear(4, 3), torch.randn(10, 4)
    parts = [x.requires_grad_(), layer.weight]
    assert timing.kept_bytes(lambda: layer(x)) == sum(part.nbytes for part in parts)
    assert timing.kept_bytes(lambda: layer(x), layer.parameters()) == x.nbytes


def test_the_attention_map_is_what_the_fused_kernel_does_not_keep():
    T, D = 256, 16
    q, k, v = torch.randn(3, 1, 1, T, D).requires_grad_().unbind()
    fused = timing.kept_bytes(lambda: nn.functional.scaled_dot_product_attention(q, k, v))
    plain = timing.kept_bytes(lambda: (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v)
    assert plain >= 4 * T * T > 2 * fused
