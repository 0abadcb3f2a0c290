"""The encoder of chapter 3: norms, positions, blocks against torch's own, and tasks that order alone decides."""

import math
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitutils import check
from vitutils.models import Block, SelfAttention, ViTConfig, transformer
from vitutils.models.transformer import (
    Encoder,
    NormBlock,
    RotaryAttention,
    rotate,
    sinusoidal_positions,
    stretch_positions,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def rows_net(**options) -> Encoder:
    return Encoder(nn.Linear(8, 16), 16, 10, **{"max_len": 8, **options}).eval()


# --- the parts ---


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-3, 0.0])
def test_layer_norm_is_torchs_at_every_size_of_token(size):
    tokens, norm = size * torch.randn(2, 5, 24), nn.LayerNorm(24, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    check.check_close(transformer.layer_norm(tokens, norm.weight, norm.bias), norm(tokens), tol=1e-5)


def test_sinusoids_are_the_papers_formula():
    positions = sinusoidal_positions(50, 16)
    check.check_shape(positions, (50, 16), "T D")
    for place, pair in ((0, 0), (7, 3), (49, 7)):
        angle = place / 10_000 ** (2 * pair / 16)
        assert positions[place, 2 * pair].item() == pytest.approx(math.sin(angle), abs=1e-4)
        assert positions[place, 2 * pair + 1].item() == pytest.approx(math.cos(angle), abs=1e-4)
    with pytest.raises(ValueError, match="D = 15"):
        sinusoidal_positions(4, 15)


def test_rotation_keeps_lengths_and_depends_on_distance_alone():
    q, k = torch.randn(2, 1, 32)
    turned_q, turned_k = rotate(q.expand(30, 32)), rotate(k.expand(30, 32))
    check.check_close(turned_q.norm(dim=1), q.norm().expand(30))
    check.check_close(turned_q[0], q[0], tol=0)
    scores = turned_q @ turned_k.T
    for distance in (0, 1, -4, 12):
        diagonal = scores.diagonal(distance)
        check.check_close(diagonal, diagonal[:1].expand_as(diagonal), tol=1e-4)
    assert (scores.diagonal(1)[0] - scores.diagonal(-1)[0]).abs() > 1e-2  # forwards is not backwards


def test_rotary_attention_is_self_attention_with_turned_queries_and_keys():
    tokens, rotary, plain = torch.randn(2, 9, 24), RotaryAttention(24, 3), SelfAttention(24, 3)
    plain.load_state_dict(rotary.state_dict())
    out, attn = rotary(tokens, need_weights=True)
    check.check_shape(attn, (2, 3, 9, 9), "B h T T")
    check.check_rows_sum_to_one(attn)
    check.check_close(rotary(tokens), out)
    q, k, v = rotary.qkv(tokens).reshape(2, 9, 3, 3, 8).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(rotate(q), rotate(k), v)
    check.check_close(out, rotary.proj(mixed.transpose(1, 2).reshape(2, 9, 24)))
    assert (plain(tokens) - out).abs().max() > 1e-3
    check.check_close(rotary(tokens[:, :1]), plain(tokens[:, :1]))  # one token: nothing to tell apart


def test_stretched_positions_keep_their_ends_and_their_own_places():
    table = torch.randn(16, 6)
    check.check_close(stretch_positions(table, 16), table, tol=1e-6)
    longer = stretch_positions(table, 31)
    check.check_shape(longer, (31, 6))
    check.check_close(longer[::2], table)
    check.check_close(longer[1::2], (table[1:] + table[:-1]) / 2)


@pytest.mark.parametrize("place", ["pre", "post"])
def test_the_block_is_torchs_with_the_norm_in_either_place(place):
    tokens, block = torch.randn(2, 7, 24), NormBlock(24, 3, 48, norm=place)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    torchs = nn.TransformerEncoderLayer(
        24, 3, 48, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=place == "pre"
    )
    ours = block.state_dict()
    names = {"attn.qkv.": "self_attn.in_proj_", "attn.proj.": "self_attn.out_proj.", "mlp.fc1.": "linear1."}
    names["mlp.fc2."] = "linear2."
    for old, new in names.items():
        ours = {key.replace(old, new): value for key, value in ours.items()}
    torchs.load_state_dict(ours)
    check.check_close(block(tokens), torchs(tokens), tol=1e-4)


def test_the_pre_norm_block_is_chapter_5s():
    tokens, block = torch.randn(2, 7, 24), NormBlock(24, 3, 96)
    vits = Block(ViTConfig(32, 8, 3, 10, embed_dim=24, depth=1, num_heads=3))
    vits.load_state_dict(block.state_dict())
    check.check_close(block(tokens), vits(tokens), tol=1e-6)


def test_another_norm_is_refused():
    with pytest.raises(ValueError, match="'middle'"):
        NormBlock(24, 3, 48, norm="middle")


# --- the encoder ---


@pytest.mark.parametrize("kind", ["none", "sinusoidal", "learned", "rotary"])
def test_without_positions_order_is_invisible_with_them_it_is_not(kind):
    rows, net = torch.randn(4, 8, 8), rows_net(positions=kind)
    check.check_shape(net(rows), (4, 10), "B K")
    moved = (net(rows[:, torch.randperm(8)]) - net(rows)).abs().max().item()
    assert moved < 1e-5 if kind == "none" else moved > 1e-3


def test_pre_norm_has_one_norm_after_the_last_block_post_norm_has_none():
    pre, post = rows_net(norm="pre", depth=3), rows_net(norm="post", depth=3)
    assert isinstance(pre.norm, nn.LayerNorm) and isinstance(post.norm, nn.Identity)
    assert [block.norm for block in post.blocks] == ["post"] * 3


def test_pooling_reads_the_mean_or_the_first_token():
    rows = torch.randn(2, 8, 8)
    first = rows_net(pool="first", depth=0)
    moved = rows.clone()
    moved[:, 1:] += 1
    check.check_close(first(moved), first(rows), tol=0)  # no block: the first token knows itself alone
    mean = rows_net(pool="mean", depth=0)
    assert (mean(moved) - mean(rows)).abs().max() > 1e-3


def test_the_encoder_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="'sine'"):
        rows_net(positions="sine")
    with pytest.raises(ValueError, match="'last'"):
        rows_net(pool="last")
    with pytest.raises(ValueError, match="9 tokens, but 8 learned positions"):
        rows_net()(torch.randn(1, 9, 8))


# --- training ---


def test_the_rate_rises_over_the_warm_up_and_falls_to_almost_nothing(monkeypatch):
    seen = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self: (seen.append(self.param_groups[0]["lr"]), step(self))[1]
    )
    net, batches = nn.Linear(4, 3), iter([(torch.randn(5, 4), torch.randint(3, (5,)))] * 100)
    losses = transformer.train_batches(net, batches, steps=100, lr=0.1, warmup=0.2)
    assert len(losses) == len(seen) == 100
    assert seen[0] == pytest.approx(0.005) and seen[9] < seen[19] <= 0.1 and seen[-1] < 1e-4
    assert max(seen) == pytest.approx(0.091, abs=0.001)  # the cosine falls from the first step
    seen.clear()
    transformer.train_batches(net, [(torch.randn(5, 4), torch.randint(3, (5,)))] * 3, steps=3, lr=0.1, warmup=0.0)
    assert seen[0] == pytest.approx(0.1)


def test_fit_learns_and_accuracy_counts_every_answer():
    inputs = torch.randn(64, 6)
    targets = torch.stack([(inputs[:, 0] > 0).long(), (inputs[:, 1] > 0).long()], dim=1)  # (B, 2)
    net = nn.Sequential(nn.Linear(6, 4), nn.Unflatten(1, (2, 2)))
    losses = transformer.train_batches(net, transformer.shuffled(inputs, targets, 32, seed=0), steps=150, lr=0.05)
    assert losses[-1] < 0.5 * losses[0]
    assert transformer.accuracy(net, inputs, targets) > 0.9
    half = targets.clone()
    half[:, 1] = 1 - half[:, 1]
    assert 0.4 < transformer.accuracy(net, inputs, half) < 0.6


def test_shuffled_gives_each_example_once_an_epoch_in_another_order():
    numbers = torch.arange(10)
    batches = list(islice(transformer.shuffled(numbers, -numbers, 4, seed=3), 4))  # two epochs of two whole batches
    assert all(len(x) == 4 and torch.equal(y, -x) for x, y in batches)
    epochs = [torch.cat([x for x, _ in batches[n : n + 2]]).tolist() for n in (0, 2)]
    assert all(len(set(epoch)) == 8 for epoch in epochs) and epochs[0] != epochs[1]
    again = next(transformer.shuffled(numbers, numbers, 4, seed=3))[0]
    assert torch.equal(again, batches[0][0])


# --- tasks ---


def test_look_ups_ask_for_the_values_that_stand_there():
    ids, answers = next(transformer.look_ups(3, 20, seed=0))
    check.check_shape(ids, (20, 17, 2))
    check.check_shape(answers, (20, 3))
    assert (ids[:, 0] == 24).all()
    for sequence, wanted in zip(ids[:, 1:].tolist(), answers.tolist(), strict=True):
        dictionary = {key: value - 16 for key, value in sequence}
        assert sorted(dictionary) == list(range(16)) and set(dictionary.values()) <= set(range(8))
        assert [dictionary[key] for key in range(3)] == wanted


def test_a_pair_is_embedded_as_its_key_plus_its_value():
    embed, ids = transformer.PairEmbedding(25, 6), next(transformer.look_ups(3, 4, seed=0))[0]
    table = embed.table.weight
    check.check_shape(embed(ids), (4, 17, 6), "B T D")
    check.check_close(embed(ids)[1, 5], table[ids[1, 5, 0]] + table[ids[1, 5, 1]])


def test_which_first_is_decided_by_order_alone():
    for T, (ids, answers) in zip((5, 9, 5), transformer.which_first((5, 9), 200, seed=0), strict=False):
        check.check_shape(ids, (200, T))
        assert ((ids == 0).sum(1) == 1).all() and ((ids == 1).sum(1) == 1).all() and ids.max() < 10
        where = [(ids == symbol).int().argmax(1) for symbol in (0, 1)]
        assert torch.equal((where[0] < where[1]).long(), answers)
        assert 0.35 < answers.float().mean() < 0.65


def test_after_marker_has_one_bag_and_the_symbol_behind_the_marker():
    seen = set()
    for T, (ids, answers) in zip((9, 17), transformer.after_marker((9, 17), 200, seed=0), strict=False):
        bag = sorted([*range(8)] * ((T - 1) // 8) + [8])
        for sequence, wanted in zip(ids.tolist(), answers.tolist(), strict=True):
            assert sorted(sequence) == bag and sequence[sequence.index(8) + 1] == wanted
            seen.add((T, sequence.index(8)))
    assert len(seen) == 8 + 16  # the marker stands at every place but the last
