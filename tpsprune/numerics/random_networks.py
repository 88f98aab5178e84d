"""Noise through random networks: signals and sequences of words, correlated as data are, made of nothing.

Source: Bloem 2025, "Universal pre-training by iterated random computation" (arXiv 2506.20057).
Shape letters: n items, r rows, c columns, l places, v words, b rows of a buffer.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor, nn

from tpsprune.numerics.decoding import draw_words

PASSES: Final = 3
"""Random networks that noise goes through, one after the other."""
FACTORS: Final = (0.5, 4.0)
"""Between these the weights of a random network are multiplied: how far it is from linear."""
HIDDEN_WORDS: Final = 64
TEMPERATURE: Final = 0.5
"""At which the words of a random network are drawn."""
MOST_SIDE: Final = 512
"""Rows and columns that a random network reads at most, for its weights are their square."""
BUFFER: Final = 512
"""Sequences that random networks pass on, some at a time."""
AT_A_TIME: Final = 32
RESET: Final = 0.01
"""Share of the sequences that are noise again before they are passed on."""


def random_signals(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return items of floats: noise through random LSTMs, along the rows or the columns, of unit variance.

    An item is a matrix, (rows, columns) = (all axes but the last, the last); one of a single axis, or of long
    rows, is folded into as square a matrix as its length allows, or into rows of 128 and cut.
    """
    n, inner = shape[0], shape[1:]
    length = math.prod(inner)
    columns = inner[-1] if len(inner) > 1 and inner[-1] <= MOST_SIDE else _divisor(length)
    if columns < MOST_SIDE // 32 and length > MOST_SIDE * columns:
        columns = MOST_SIDE // 4
    rows = math.ceil(length / columns)
    signals_nrc = torch.randn(n, rows, columns, generator=generator)
    for _ in range(PASSES):
        turned, backwards = (torch.rand(2, generator=generator) < 0.5).tolist()
        turned = turned and rows <= MOST_SIDE
        each_nrc = signals_nrc.mT if turned else signals_nrc
        each_nrc = each_nrc.flip(1) if backwards else each_nrc
        network = _random_lstm(each_nrc.shape[2], each_nrc.shape[2], generator)
        with torch.no_grad():
            each_nrc = network(each_nrc.contiguous())[0]
        each_nrc = each_nrc.flip(1) if backwards else each_nrc
        signals_nrc = each_nrc.mT if turned else each_nrc
        signals_nrc = (signals_nrc - signals_nrc.mean()) / signals_nrc.std(unbiased=False).clamp_min(1e-6)
    return signals_nrc.flatten(1)[:, :length].reshape(shape)


def random_words(vocabulary: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return sequences of token ids, each drawn word by word from a random LSTM that reads its own words."""
    n, length = shape[0], math.prod(shape[1:])
    network = _RandomReader(vocabulary, generator)
    first_n1 = torch.randint(vocabulary, (n, 1), generator=generator)
    with torch.no_grad():
        return draw_words(network.follow, first_n1, length, generator).reshape(shape)


def iterated_words(vocabulary: int, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return sequences (n, l) of token ids: noise that random LSTMs have passed on, a few times on average.

    A buffer begins as noise. Again and again a new LSTM is drawn, reads some of its sequences, each of them
    noise again with probability 0.01, and draws a word at every place; these take the place of what it read,
    and are given out once every sequence of the buffer has been passed on ``PASSES`` times on average.

    Not seen: how often a sequence was passed on; sequences of one network have more in common than others.

    Cost: a network for each 32 sequences.
    """
    n, length = shape
    buffer_bl = torch.randint(vocabulary, (BUFFER, length), generator=generator)
    warm = PASSES * BUFFER // AT_A_TIME
    found = []
    with torch.no_grad():
        for turn in range(warm + math.ceil(n / AT_A_TIME)):
            row_n = torch.randperm(BUFFER, generator=generator)[:AT_A_TIME]
            read_nl = buffer_bl[row_n]
            anew_n = torch.rand(AT_A_TIME, generator=generator) < RESET
            read_nl[anew_n] = torch.randint(vocabulary, (int(anew_n.sum()), length), generator=generator)
            scores_nlv = _RandomReader(vocabulary, generator).read(read_nl)
            drawn = torch.multinomial(scores_nlv.flatten(0, 1).softmax(1), 1, generator=generator)
            buffer_bl[row_n] = words_nl = drawn.view(AT_A_TIME, length)
            if turn >= warm:
                found.append(words_nl)
    return torch.cat(found)[torch.randperm(len(found) * AT_A_TIME, generator=generator)[:n]]


class _RandomReader:
    """A random LSTM between a random embedding and a random readout; it keeps its state."""

    def __init__(self, vocabulary: int, generator: torch.Generator) -> None:
        self._network = _random_lstm(HIDDEN_WORDS, HIDDEN_WORDS, generator)
        self._embedding_vd = torch.randn(vocabulary, HIDDEN_WORDS, generator=generator)
        self._readout_dv = torch.randn(HIDDEN_WORDS, vocabulary, generator=generator)
        self._state: Any = None

    def read(self, words_nl: Tensor) -> Tensor:
        """Return the scores (n, l, v) of what follows each word."""
        hidden_nld, self._state = self._network(self._embedding_vd[words_nl], self._state)
        scores_nlv: Tensor = hidden_nld @ self._readout_dv / TEMPERATURE
        return scores_nlv

    def follow(self, word_n1: Tensor) -> Tensor:
        """Return the scores (n, v) of what follows a word."""
        return self.read(word_n1)[:, -1]


def _random_lstm(inputs: int, hidden: int, generator: torch.Generator) -> nn.LSTM:
    network = nn.LSTM(inputs, hidden, batch_first=True)
    low, high = FACTORS
    factor = low + (high - low) * torch.rand((), generator=generator)
    with torch.no_grad():
        for weight in network.parameters():
            bound = factor / math.sqrt(hidden)
            weight.copy_((2 * torch.rand(weight.shape, generator=generator) - 1) * bound)
    return network


def _divisor(number: int) -> int:
    """Return the divisor of a number that is nearest to its root, from below."""
    return next(each for each in range(math.isqrt(number), 0, -1) if number % each == 0)
