"""Small networks over ids of tokens, for the zoo, the demo and the tests; id 0 is padding.

A factory takes the number of classes, of known tokens, and the length of a text in tokens. Without arguments
it fits the word tokenizers of the zoo, which know at most `TOKENS` words.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOKENS, LENGTH = 8000, 32


def _table(tokens: int, width: int) -> nn.Embedding:
    """Embeddings that start small, so that few texts are enough to give words a meaning."""
    table = nn.Embedding(tokens, width, padding_idx=0)
    with torch.no_grad():
        table.weight.mul_(0.1)
    return table


class TextCNN(nn.Module):
    """Convolutions of three widths over embeddings, the maximum over all places of a text (Kim, 2014)."""

    def __init__(self, classes: int, tokens: int, length: int, width: int = 64, channels: int = 64) -> None:
        super().__init__()
        self.input_shape = (length,)
        self.embedding = _table(tokens, width)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, channels, k, padding=k // 2) for k in (1, 3, 5))
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(3 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        there = (x != 0)[:, None]
        z = self.embedding(x).transpose(1, 2)
        found = [F.relu(c(z)).masked_fill(~there, 0.0).amax(2) for c in self.convolutions]
        return self.head(self.dropout(torch.cat(found, 1)))


class TextLSTM(nn.Module):
    """A bidirectional LSTM; the mean of its states over a text."""

    def __init__(self, classes: int, tokens: int, length: int, width: int = 64) -> None:
        super().__init__()
        self.input_shape = (length,)
        self.embedding = _table(tokens, width)
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.hidden = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        there = (x != 0)[..., None]
        z, _ = self.lstm(self.embedding(x))
        mean = (z * there).sum(1) / there.sum(1).clamp_min(1)
        return self.head(self.dropout(F.relu(self.hidden(mean))))


class _Block(nn.Module):
    """Attention and a feed-forward layer, each normalised afterwards (BERT), or before (GPT-2)."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.1)

    def attention(self, z: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.qkv(z).chunk(3, 2))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def forward(self, z: Tensor, mask: Tensor) -> Tensor:
        if self.causal:
            z = z + self.dropout(self.attention(self.norm1(z), mask))
            return z + self.dropout(self.down(F.gelu(self.up(self.norm2(z)))))
        z = self.norm1(z + self.dropout(self.attention(z, mask)))
        return self.norm2(z + self.dropout(self.down(F.gelu(self.up(z)))))


class Transformer(nn.Module):
    """An encoder that is read at its first token (BERT), or a decoder, read at its last one (GPT-2)."""

    def __init__(
        self, classes: int, tokens: int, length: int, width: int = 64, layers: int = 2, causal: bool = False
    ) -> None:
        super().__init__()
        self.input_shape, self.causal = (length,), causal
        self.embedding = _table(tokens, width)
        self.place = nn.Parameter(0.02 * torch.randn(1, length, width))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.1)
        self.blocks = nn.ModuleList(_Block(width, 4, causal) for _ in range(layers))
        self.pooler = None if causal else nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        there = x != 0
        there = there | (torch.arange(x.shape[1], device=x.device) == 0)  # a row of padding has one place
        mask = there[:, None, None]
        if self.causal:
            mask = mask & torch.ones((x.shape[1], x.shape[1]), dtype=torch.bool, device=x.device).tril()
        z = self.embedding(x) + self.place[:, : x.shape[1]]
        z = self.dropout(self.norm(z))
        for block in self.blocks:
            z = block(z, mask)
        if self.pooler is not None:
            return self.head(torch.tanh(self.pooler(z[:, 0])))
        last = (there.long() * torch.arange(x.shape[1], device=x.device)).amax(1)
        return self.head(z.gather(1, last[:, None, None].expand(-1, 1, z.shape[2]))[:, 0])


def text_cnn(classes: int = 2, tokens: int = TOKENS, length: int = LENGTH) -> nn.Module:
    """TextCNN, embeddings of 64: trains in seconds on one core."""
    return TextCNN(classes, tokens, length)


def text_lstm(classes: int = 2, tokens: int = TOKENS, length: int = LENGTH) -> nn.Module:
    """A bidirectional LSTM of 64 units each way."""
    return TextLSTM(classes, tokens, length)


def small_bert(classes: int = 2, tokens: int = TOKENS, length: int = LENGTH) -> nn.Module:
    """Two layers of BERT, 64 features, with a pooler."""
    return Transformer(classes, tokens, length)


def small_distilbert(classes: int = 2, tokens: int = TOKENS, length: int = LENGTH) -> nn.Module:
    """One layer, as DistilBERT has half of BERT's."""
    return Transformer(classes, tokens, length, layers=1)


def small_gpt(classes: int = 2, tokens: int = TOKENS, length: int = LENGTH) -> nn.Module:
    """Two layers of a causal decoder, read at the last token."""
    return Transformer(classes, tokens, length, causal=True)
