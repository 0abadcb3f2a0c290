"""The recall task of chapter 2, which compares one attention layer with an LSTM. The chapter has the same code.

Letters: B batch, T tokens, D width. Source of the LSTM: Hochreiter and Schmidhuber 1997.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitutils.models.attention import attention

NUM_KEYS, NUM_VALUES = 64, 16
NO_VALUE = NUM_VALUES  # paired with the key in the question


def recall_batch(
    B: int, pairs: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw B sequences of (key, value) pairs, and one question each.

    Returns keys (B, T), values (B, T), answers (B,) and place (B,), where T is
    pairs + 1. The last token is the question: a key of the sequence, with
    NO_VALUE. The answer is the value paired with that key, in token `place`.
    The keys of a sequence all differ; its values may repeat.
    """
    keys = torch.rand(B, NUM_KEYS, generator=generator).topk(pairs).indices
    values = torch.randint(NUM_VALUES, (B, pairs), generator=generator)
    place = torch.randint(pairs, (B, 1), generator=generator)
    asked, answers = keys.gather(1, place), values.gather(1, place)
    keys = torch.cat([keys, asked], dim=1)
    empty = torch.full((B, 1), NO_VALUE)
    values = torch.cat([values, empty], dim=1)
    return keys, values, answers[:, 0], place[:, 0]


class PairEmbed(nn.Module):
    """One token for a key and its value: the sum of their embeddings.

    keys (B, T), values (B, T) -> tokens (B, T, D).
    """

    def __init__(self, embed_dim: int):
        super().__init__()
        self.key = nn.Embedding(NUM_KEYS, embed_dim)
        self.value = nn.Embedding(NUM_VALUES + 1, embed_dim)

    def forward(self, keys: Tensor, values: Tensor) -> Tensor:
        return self.key(keys) + self.value(values)


class RecallAttention(nn.Module):
    """One attention layer: the last token asks and looks at all tokens.

    keys (B, T), values (B, T) -> logits (B, NUM_VALUES); need_weights=True
    adds attn (B, 1, T). No positions: the order of the pairs cannot matter.
    """

    def __init__(self, embed_dim: int):
        super().__init__()
        self.embed = PairEmbed(embed_dim)
        self.q = nn.Linear(embed_dim, embed_dim)
        self.k = nn.Linear(embed_dim, embed_dim)
        self.v = nn.Linear(embed_dim, embed_dim)
        self.head = nn.Linear(embed_dim, NUM_VALUES)

    def forward(
        self, keys: Tensor, values: Tensor, need_weights: bool = False
    ):
        tokens = self.embed(keys, values)  # (B, T, D)
        q = self.q(tokens[:, -1:])  # (B, 1, D)
        out, attn = attention(q, self.k(tokens), self.v(tokens))
        logits = self.head(out[:, 0])  # (B, NUM_VALUES)
        return (logits, attn) if need_weights else logits


class RecallLSTM(nn.Module):
    """An LSTM reads the pairs in order and answers after the question.

    keys (B, T), values (B, T) -> logits (B, NUM_VALUES). forget_bias is added
    to the bias of the forget gate: with 3 the gate starts nearly open.
    """

    def __init__(self, embed_dim: int, forget_bias: float = 0.0):
        super().__init__()
        self.embed = PairEmbed(embed_dim)
        self.lstm = nn.LSTM(embed_dim, embed_dim, batch_first=True)
        forget = slice(embed_dim, 2 * embed_dim)  # gates i, f, g, o
        self.lstm.bias_ih_l0.data[forget] += forget_bias
        self.head = nn.Linear(embed_dim, NUM_VALUES)

    def forward(self, keys: Tensor, values: Tensor) -> Tensor:
        states, _ = self.lstm(self.embed(keys, values))  # (B, T, D)
        return self.head(states[:, -1])  # (B, NUM_VALUES)


def train_recall(
    model: nn.Module, pairs: int, lr: float, steps: int, seed: int
) -> tuple[list[float], list[float]]:
    """Train in place; every step draws 128 new sequences.

    Returns the loss and the accuracy on each step's batch, before the step.
    The batches are new, so with more than a few pairs hardly any sequence
    occurs twice.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, steps, pct_start=0.1, cycle_momentum=False
    )
    losses, accuracies = [], []
    for _ in range(steps):
        batch = recall_batch(128, pairs, generator)
        keys, values, answers, _ = (part.to(device) for part in batch)
        logits = model(keys, values)
        loss = F.cross_entropy(logits, answers)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        right = logits.argmax(dim=1) == answers
        accuracies.append(right.float().mean().item())
    return losses, accuracies
