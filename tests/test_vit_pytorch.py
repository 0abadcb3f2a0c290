"""Chapter 8: the nets of its studies differ in what their names say."""

from dataclasses import replace

import pytest
import torch
import vit_pytorch
from torch import nn

from studies import library, library_weights
from studies.record import store_of
from studies.store import NotYet
from vitutils import check
from vitutils.models import ViT, conversion
from vitutils.train import parameter_groups


def spread(net):
    return (net.pos_embed if isinstance(net, ViT) else net.pos_embedding).std().item()


def first_layers_std(net):
    return net.blocks[0].mlp.fc1.weight.std().item()


def test_each_net_of_the_study_differs_from_ours_in_what_its_name_says():
    nets = {name: library.make_net(name, 0) for name in library.NETS}
    assert {name: isinstance(net, ViT) for name, net in nets.items()} == {n: n.startswith("ours") for n in library.NETS}
    ours = nets["ours"]
    norms, places = nets["ours, two more norms"], nets["ours, positions of std 1"]
    fresh = nets["ours, torch's first weights"]
    P, D = library.VIT.patch_size, library.VIT.embed_dim
    assert check.count_parameters(norms) - check.count_parameters(ours) == 2 * P * P + 2 * D
    assert isinstance(norms.patch_embed, conversion.VitPytorchPatchEmbed)
    same_size = ("ours, positions of std 1", "ours, torch's first weights")
    assert {check.count_parameters(nets[name]) for name in same_size} == {check.count_parameters(ours)}
    far = {name for name, net in nets.items() if spread(net) > 0.5}
    assert far == {"ours, positions of std 1", "library"}
    assert spread(places) == pytest.approx(1, abs=0.1) and spread(ours) == pytest.approx(0.02, abs=0.005)
    drawn_otherwise = {n for n, net in nets.items() if n.startswith("ours") and net.head.weight.abs().sum() > 0}
    assert drawn_otherwise == {"ours, torch's first weights"}
    assert first_layers_std(fresh) < 0.8 * first_layers_std(ours) == pytest.approx(0.8 * first_layers_std(places))


def test_the_nets_of_the_second_study_start_as_their_names_say():
    ours, apart, matrices = (
        library_weights.make_net(net, 0) for net in ("ours", library_weights.APART, library_weights.MATRICES)
    )
    fresh = library.make_net("ours, torch's first weights", 0)

    def qkv(net):
        return net.blocks[0].attn.qkv.weight.std().item()

    assert qkv(ours) == pytest.approx((2 * library.VIT.embed_dim) ** -0.5, rel=0.05)
    assert qkv(apart) == pytest.approx(library.VIT.embed_dim**-0.5, rel=0.05)
    assert first_layers_std(apart) == first_layers_std(ours)
    assert qkv(matrices) == qkv(fresh) < 0.9 * qkv(ours) and fresh.head.weight.abs().sum() > 0
    zero = [p for name, p in matrices.named_parameters() if name == "head.weight" or name.endswith("bias")]
    assert not any(p.any() for p in zero)


def test_the_study_gives_the_library_our_sizes():
    torch.manual_seed(0)
    theirs = library.make_net("library", 0).eval()
    assert isinstance(theirs, vit_pytorch.ViT)
    twin = ViT(replace(library.VIT, qkv_bias=False, norm_eps=1e-5), conversion.VitPytorchPatchEmbed).eval()
    conversion.load_into(twin, conversion.from_vit_pytorch(theirs.state_dict()))
    images = torch.randn(3, 1, 28, 28)
    with torch.no_grad():
        check.check_close(twin(images), theirs(images), tol=1e-5)


@pytest.mark.parametrize("name", library.NETS)
def test_a_seed_names_the_first_weights(name):
    first, again, other = (library.make_net(name, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_an_unstarted_search_is_not_taken_for_a_best_rate(tmp_path):
    store, name = store_of(library, tmp_path), {"part": "main", "net": "ours", "variant": "best", "seed": 0}
    for lr, accuracy in zip(library.RATES, (0.7, 0.9, 0.8, 0.6), strict=True):
        with pytest.raises(NotYet, match=f"search, ours: {len(store.rows())} of 4 runs"):
            library.rate_of(store, name, library.RATES, net="ours")
        searched = {"part": "search", "net": "ours", "variant": f"lr {lr:g}", "seed": 100}
        store.append(searched | {"lr": lr, "accuracy": accuracy})
    assert library.rate_of(store, name, library.RATES, net="ours") == library.RATES[1]


def test_decay_leaves_out_the_librarys_positions():
    net = library.make_net("library", 0)
    decay, keep = parameter_groups(net, 0.05)
    assert any(p is net.pos_embedding for p in keep["params"])
    assert all(p.ndim >= 2 for p in decay["params"])
    assert isinstance(net.mlp_head, nn.Linear) and any(p is net.mlp_head.weight for p in decay["params"])
