"""Chapter 2's attention against PyTorch's, its layer, and the recall task with its two nets."""

import ast
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vitutils import check, results
from vitutils.models import attention as module
from vitutils.models.attention import AttentionLayer, attention
from vitutils.models.recall import (
    NO_VALUE,
    NUM_KEYS,
    NUM_VALUES,
    RecallAttention,
    RecallLSTM,
    recall_batch,
    train_recall,
)

ROOT = Path(__file__).resolve().parent.parent
T, DH = 6, 16


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def qkv(dtype=torch.float32) -> list[torch.Tensor]:
    return [draw(4, T, DH, seed=seed).to(dtype) for seed in (1, 2, 3)]


def some_mask() -> torch.Tensor:
    return (draw(4, T, T, seed=4) > 0) | torch.eye(T, dtype=torch.bool)


MASKS = {
    "none": lambda: None,
    "boolean": some_mask,
    "numbers": lambda: draw(4, T, T, seed=5, scale=2.0),
    "causal": lambda: torch.ones(T, T, dtype=torch.bool).tril(),
    "one row for all queries": lambda: torch.tensor([True, False, True, True, False, True]),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("dtype, tol", [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_equals_torchs_with_every_kind_of_mask(name, dtype, tol):
    q, k, v = qkv(dtype)
    mask = MASKS[name]()
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(dtype)
    out, attn = attention(q, k, v, mask)
    theirs = None if mask is None else mask.expand(4, T, T)
    check.check_close(out, F.scaled_dot_product_attention(q, k, v, attn_mask=theirs), tol=tol)
    check.check_shape(attn, (4, T, T))
    check.check_rows_sum_to_one(attn, tol=1e-6)


def test_causal_mask_equals_torchs_own():
    q, k, v = qkv()
    out, attn = attention(q, k, v, MASKS["causal"]())
    check.check_close(out, F.scaled_dot_product_attention(q, k, v, is_causal=True), tol=1e-6)
    assert (attn.triu(1) == 0).all()


def test_gradients_equal_torchs():
    ours, theirs = ([x.double().requires_grad_() for x in qkv()] for _ in range(2))
    attention(*ours, MASKS["causal"]())[0].square().sum().backward()
    F.scaled_dot_product_attention(*theirs, is_causal=True).square().sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        check.check_close(mine.grad, other.grad, tol=1e-12)


def test_other_numbers_of_queries_and_other_widths_of_values():
    q, k, v = draw(2, 3, 5, DH, seed=6), draw(2, 3, 9, DH, seed=7), draw(2, 3, 9, 4, seed=8)
    out, attn = attention(q, k, v)
    check.check_shape(out, (2, 3, 5, 4))
    check.check_shape(attn, (2, 3, 5, 9))
    check.check_close(out, F.scaled_dot_product_attention(q, k, v), tol=1e-6)


def test_true_means_may_look():
    q, k, v = qkv()
    mask = torch.ones(T, T, dtype=torch.bool)
    mask[:, 2] = False
    out, attn = attention(q, k, v, mask)
    assert (attn[..., 2] == 0).all() and (attn[..., 3] > 0).all()
    k[:, 2], v[:, 2] = 50.0, -50.0
    assert torch.equal(attention(q, k, v, mask)[0], out)


@pytest.mark.parametrize("kind", ["boolean", "numbers"])
def test_a_query_that_may_look_nowhere_gives_what_torch_gives(kind):
    mask = torch.ones(T, T, dtype=torch.bool).tril()
    mask[3] = False
    if kind == "numbers":
        mask = torch.zeros(T, T).masked_fill(~mask, -math.inf)
    ours, theirs = ([x.requires_grad_() for x in qkv()] for _ in range(2))
    out, attn = attention(*ours, mask)
    expected = F.scaled_dot_product_attention(*theirs, attn_mask=mask)
    check.check_close(out, expected, tol=1e-6)
    assert (out[:, 3] == 0).all() and (attn[:, 3] == 0).all()
    out.square().sum().backward()
    expected.square().sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        check.check_close(mine.grad, other.grad, tol=1e-5)


def test_scores_of_unit_vectors_have_variance_one():
    scores = [attention(draw(256, Dh), draw(256, Dh, seed=1), torch.eye(256))[1].log() for Dh in (16, 256)]
    spread = [(s - s.mean(-1, keepdim=True)).var().item() for s in scores]  # a row's log weights, up to a constant
    assert spread == pytest.approx([1.0, 1.0], rel=0.1)


def test_the_layers_two_paths_agree_and_it_is_permutation_equivariant():
    torch.manual_seed(0)
    layer, tokens, order = AttentionLayer(32), draw(2, 10, 32), torch.randperm(10)
    out, attn = layer(tokens, need_weights=True)
    check.check_rows_sum_to_one(attn)
    check.check_shape(attn, (2, 10, 10))
    check.check_close(layer(tokens), out, tol=1e-6)
    check.check_close(layer(tokens[:, order]), out[:, order], tol=1e-6)


def test_the_layer_equals_torchs_module_on_copied_weights():
    torch.manual_seed(0)
    layer, reference = AttentionLayer(32), torch.nn.MultiheadAttention(32, 1, batch_first=True)
    with torch.no_grad():
        for mine, other in (
            (layer.qkv.weight, reference.in_proj_weight),
            (layer.qkv.bias, reference.in_proj_bias),
            (layer.proj.weight, reference.out_proj.weight),
            (layer.proj.bias, reference.out_proj.bias),
        ):
            mine.copy_(other + 0.1 * torch.randn_like(other))
            other.copy_(mine)
    tokens = draw(2, 10, 32)
    out, attn = reference(tokens, tokens, tokens)
    ours, ours_attn = layer(tokens, need_weights=True)
    check.check_close(ours, out, tol=1e-6)
    check.check_close(ours_attn, attn, tol=1e-6)


@pytest.mark.parametrize("pairs", [1, 4, NUM_KEYS])
def test_a_recall_sequence_can_be_answered_from_itself(pairs):
    keys, values, answers, place = recall_batch(300, pairs, torch.Generator().manual_seed(0))
    check.check_shape(keys, (300, pairs + 1))
    check.check_shape(values, (300, pairs + 1))
    shown = keys[:, :-1]
    assert all(len(set(row)) == pairs for row in shown.tolist()), "keys of a sequence differ"
    matches = shown == keys[:, -1:]
    assert (matches.sum(dim=1) == 1).all() and torch.equal(matches.int().argmax(dim=1), place)
    assert torch.equal(values.gather(1, place[:, None])[:, 0], answers)
    assert (values[:, -1] == NO_VALUE).all() and values[:, :-1].max() < NUM_VALUES and keys.max() < NUM_KEYS


def test_recall_draws_freely_and_repeatably():
    keys, values, _, place = recall_batch(4000, 8, torch.Generator().manual_seed(0))
    again = recall_batch(4000, 8, torch.Generator().manual_seed(0))
    assert torch.equal(keys, again[0]) and torch.equal(values, again[1])
    for drawn, kinds in ((keys[:, 0], NUM_KEYS), (values[:, 0], NUM_VALUES), (place, 8)):
        share = drawn.bincount(minlength=kinds) / len(drawn)
        assert len(share) == kinds and (share - 1 / kinds).abs().max() < 5 * math.sqrt(1 / kinds / 4000)


@pytest.mark.parametrize("net", [RecallAttention(64), RecallLSTM(42)], ids=["attention", "lstm"])
def test_the_nets_give_logits_over_the_values(net):
    keys, values, _, _ = recall_batch(5, 8, torch.Generator().manual_seed(0))
    check.check_shape(net(keys, values), (5, NUM_VALUES))


@pytest.mark.parametrize("kind, width", [(RecallAttention, 64), (RecallLSTM, 42)], ids=["attention", "lstm"])
def test_the_answer_depends_on_the_question_and_on_every_pair(kind, width):
    torch.manual_seed(0)
    net, (keys, values, _, _) = kind(width), recall_batch(1, 4, torch.Generator().manual_seed(0))
    for place in range(5):
        other = keys.clone()
        other[0, place] = (keys[0, place] + 1) % NUM_KEYS
        assert (net(other, values) - net(keys, values)).abs().max() > 1e-4, place


def test_the_nets_are_of_equal_size():
    sizes = [check.count_parameters(net) for net in (RecallAttention(64), RecallLSTM(42))]
    assert sizes == [18_704, 18_538] and abs(sizes[1] / sizes[0] - 1) < 0.01


def test_the_forget_bias_opens_the_forget_gates_and_nothing_else():
    nets = []
    for bias in (0.0, 3.0):
        torch.manual_seed(0)
        nets.append(dict(RecallLSTM(6, bias).named_parameters()))
    moved = {name: nets[1][name] - nets[0][name] for name in nets[0]}
    gates = moved.pop("lstm.bias_ih_l0").detach().unflatten(0, (4, 6))  # torch's order: i, f, g, o
    assert torch.equal(gates[[0, 2, 3]], torch.zeros(3, 6)) and all((rest == 0).all() for rest in moved.values())
    check.check_close(gates[1], torch.full((6,), 3.0), tol=1e-6)
    torch.manual_seed(0)
    plain = RecallLSTM(6).lstm.bias_ih_l0
    assert torch.equal(plain, nets[0]["lstm.bias_ih_l0"]) and (plain != 0).all(), "the default adds nothing"


def test_attention_does_not_mind_the_order_of_the_pairs_and_the_lstm_does():
    torch.manual_seed(0)
    keys, values, _, _ = recall_batch(5, 8, torch.Generator().manual_seed(0))
    order = torch.cat([torch.arange(8).flip(0), torch.tensor([8])])
    net, lstm = RecallAttention(64), RecallLSTM(42)
    logits, attn = net(keys, values, need_weights=True)
    moved, moved_attn = net(keys[:, order], values[:, order], need_weights=True)
    check.check_close(moved, logits, tol=1e-5)
    check.check_close(moved_attn, attn[..., order], tol=1e-5)
    check.check_shape(attn, (5, 1, 9))
    assert (lstm(keys[:, order], values[:, order]) - lstm(keys, values)).abs().max() > 1e-3


def test_attention_learns_to_look_at_the_matching_pair_in_a_few_steps():
    torch.manual_seed(0)
    net = RecallAttention(64)
    losses, accuracies = train_recall(net, pairs=4, lr=1e-2, steps=120, seed=0)
    assert len(losses) == len(accuracies) == 120
    assert losses[0] == pytest.approx(math.log(NUM_VALUES), abs=0.5) and accuracies[0] < 0.2
    keys, values, answers, place = recall_batch(500, 4, torch.Generator().manual_seed(9))
    with torch.no_grad():
        logits, attn = net(keys, values, need_weights=True)
    assert (logits.argmax(1) == answers).float().mean() > 0.95
    assert attn[:, 0].gather(1, place[:, None]).mean() > 0.9 and attn[:, 0, -1].mean() < 0.05


def test_training_repeats_itself_by_seed():
    def run(seed):
        torch.manual_seed(0)
        return train_recall(RecallLSTM(8), pairs=2, lr=1e-3, steps=5, seed=seed)[0]

    assert run(3) == run(3) != run(4)


def test_the_chapter_writes_out_all_of_it():
    chapter = json.loads((ROOT / "notebooks" / "02_attention.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in chapter["cells"] if cell["cell_type"] == "code"]
    cells = [cell for cell in cells if "google.colab" not in cell]
    written = {node.name: ast.dump(node) for cell in cells for node in ast.parse(cell).body if hasattr(node, "name")}
    own = ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body
    for node in own:
        if hasattr(node, "name"):
            assert written.get(node.name) == ast.dump(node), node.name
    shown = [node for cell in cells for node in ast.parse(cell).body if isinstance(node, ast.Assign)]
    shown = {ast.dump(node) for node in shown}
    assert all(ast.dump(node) in shown for node in own if isinstance(node, ast.Assign)), "the constants differ"


def test_no_best_rate_of_the_study_lies_at_the_edge_of_its_grid():
    rows = [row for row in results.read("recall") if row["part"] == "search"]
    for case in {(row["net"], row["pairs"]) for row in rows}:
        tried = [row for row in rows if (row["net"], row["pairs"]) == case]
        best = min(tried, key=lambda row: row["loss"])["lr"]
        assert min(row["lr"] for row in tried) < best < max(row["lr"] for row in tried), case
