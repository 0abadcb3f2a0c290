"""Candidates take turns; memory is counted storage by storage, FLOPs with nothing fused."""

import warnings

import pytest
import torch
from torch import nn
from vit_pytorch.cait import CaiT

from vitutils import timing
from vitutils.models import ViT, ViTConfig


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


# --- FLOPs ---

SMALL_CAIT = dict(image_size=32, patch_size=8, num_classes=10, dim=32, depth=1, cls_depth=1, heads=2, mlp_dim=64)

T, D = 17, 48
ATTENTION = 8 * T * D**2 + 4 * T**2 * D
COUNTED = {  # module -> its FLOPs on tokens (1, T, D), by formula
    "linear": (lambda: nn.Linear(D, 10), 2 * T * D * 10),
    "attention": (lambda: nn.MultiheadAttention(D, 3, batch_first=True), ATTENTION),
    "layer": (lambda: nn.TransformerEncoderLayer(D, 3, 4 * D, batch_first=True), ATTENTION + 16 * T * D**2),
    "LSTM": (lambda: nn.LSTM(D, D, batch_first=True), 16 * T * D**2),
    "norm": (lambda: nn.LayerNorm(D), 0),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", COUNTED)
def test_flops_are_counted_as_by_formula_whatever_is_fused(name, device):
    make, expected = COUNTED[name]
    net, tokens = make().to(device), torch.zeros(1, T, D, device=device)
    inputs = (tokens,) * 3 if name == "attention" else (tokens,)
    fast = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert timing.count_flops(net, *inputs) == expected
    assert net.training and fast == (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled)


def test_a_vits_flops_are_those_of_its_formula_on_every_device_and_in_every_mode():
    config = ViTConfig(32, 8, 3, 10, D, 2, 3, global_pool="avg")
    N, image = 16, torch.zeros(1, 3, 32, 32)
    expected = 2 * (24 * N * D**2 + 4 * N**2 * D) + 2 * N * 3 * 64 * D + 2 * D * 10
    for net, images in ((ViT(config), image), (ViT(config).eval(), image), (ViT(config).to("meta"), image.to("meta"))):
        assert timing.count_flops(net, images) == expected
    assert timing.count_flops(net, images.expand(3, -1, -1, -1)) == 3 * expected
    with torch.no_grad():  # a network that hands a parameter to a module, as CaiT does: torch's counter fails here
        assert timing.count_flops(CaiT(**SMALL_CAIT), image) > 0


def test_flops_of_a_result_are_refused_and_a_failing_model_leaves_all_as_it_was():
    with pytest.raises(ValueError, match="module or function, then its inputs, got a Tensor"):
        timing.count_flops(torch.ones(3))
    net = nn.Linear(3, 2)
    with pytest.raises(RuntimeError):
        timing.count_flops(net, torch.ones(4))
    assert net.training and torch.backends.mha.get_fastpath_enabled() and torch.is_grad_enabled()
