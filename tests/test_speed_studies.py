"""The two studies of chapter 14 that take things apart: FLOP counters, and kernels timed by themselves."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from studies import flop_counts, profiles
from studies.speed import ByHand


def test_a_counter_is_given_a_copy_and_leaves_the_network_as_it_is(monkeypatch):
    """thop and ptflops write into the network that they count."""
    net, seen = nn.Linear(3, 2), []

    def count(copied, image, mode):
        copied.total_ops = 1
        seen.append((tuple(image.shape), mode))
        return 7.0

    monkeypatch.setitem(flop_counts.COUNTERS, "thop", count)
    assert flop_counts.count("thop", "by module", net, 8) == 7
    assert seen == [((1, 3, 8, 8), "by module")] and not hasattr(net, "total_ops")


@pytest.mark.parametrize("tool", flop_counts.VERSIONS)
def test_another_version_of_a_counter_is_refused(tool, monkeypatch):
    monkeypatch.setattr(flop_counts.importlib.metadata, "version", lambda name: "99.0")
    with pytest.raises(SystemExit, match=f"expected {tool} .*, found 99.0"):
        flop_counts.version(tool)


def test_the_networks_are_one_network_by_their_parameters_and_products():
    parameters, flops = set(), set()
    for name in flop_counts.NETS:
        net = flop_counts.make_net(name, *flop_counts.SMALL)
        by_hand = any(isinstance(part, ByHand) for part in net.modules())
        assert not net.training and by_hand == name.endswith("by hand")
        parameters.add(sum(p.numel() for p in net.parameters()))
        if not by_hand:
            with FlopCounterMode(display=False) as counter:
                net(torch.zeros(1, 3, 32, 32))
            flops.add(counter.get_total_flops())
    assert len(parameters) == len(flops) == 1


@pytest.mark.parametrize(
    "kernel, expected",
    [
        ("aten::addmm", "products"),
        ("aten::convolution_backward", "products"),
        ("aten::bmm", "attention"),
        ("aten::_softmax_backward_data", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::native_layer_norm_backward", "norms"),
        ("aten::gelu_backward", "GELU"),
        ("aten::add_", "sums"),
        ("aten::_fused_adamw_", "optimizer"),
        ("aten::view", "other"),
    ],
)
def test_a_kernel_is_of_one_kind(kernel, expected):
    assert profiles.kind(kernel) == expected


def test_every_kernel_of_a_step_is_timed_backward_too():
    layer, x = nn.Linear(3, 2), torch.ones(4, 3)
    names, spent = profiles.calls_of(lambda: layer(x).relu().sum().backward())
    assert {"aten::addmm", "aten::relu", "aten::sum", "aten::threshold_backward", "aten::mm"} <= set(names)
    assert len(names) == len(spent) and min(spent) >= 0


def test_of_each_call_the_shortest_time_is_kept(monkeypatch):
    steps = iter(
        [
            (["aten::mm", "aten::mm", "aten::add"], [9e3, 1e3, 2e3]),
            (["aten::mm", "aten::mm", "aten::add"], [2e3, 5e3, 3e3]),
        ]
    )
    monkeypatch.setattr(profiles, "calls_of", lambda step: next(steps))
    spent, count = profiles.quietest(None, 2)
    assert spent == {"products": 3.0, "sums": 2.0} and count == {"products": 2, "sums": 1}


def test_steps_that_call_something_else_are_refused(monkeypatch):
    steps = iter([(["aten::mm"], [1.0]), (["aten::mm", "aten::add"], [1.0, 1.0])])
    monkeypatch.setattr(profiles, "calls_of", lambda step: next(steps))
    with pytest.raises(ValueError, match="the same 1 calls in each step, got 2"):
        profiles.quietest(None, 2)
