"""Sequences of words, each drawn from what a model says may follow those before.

Shape letters: n sequences, l places, v words.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from tpsprune.numerics.forward import logits_of

CACHED: Final = {"input_ids", "past_key_values", "use_cache"}
"""Arguments of a model of transformers that keeps what it has read."""


def draw_words(
    follow: Callable[[Tensor], Tensor], first_n1: Tensor, length: int, generator: torch.Generator
) -> Tensor:
    """Return sequences (n, l) that begin with a word each; ``follow`` scores what comes next.

    It is called with the words (n, 1) drawn last and returns scores (n, v); the next word is drawn from their
    softmax. Probabilities are drawn from on the CPU, whose generator is given.
    """
    words = [first_n1]
    for _ in range(length - 1):
        scores_nv = follow(words[-1].to(first_n1.device)).float().cpu()
        words.append(torch.multinomial(scores_nv.softmax(1), 1, generator=generator))
    return torch.cat([each.to(first_n1.device) for each in words], dim=1)


@final
class Reader:
    """A causal model that reads sequences, some words at a time, and scores what may follow.

    A model of transformers keeps what it has read (``past_key_values``), so that a word costs a pass of one
    place; any other reads all of the sequence again.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._keeps = signature(model.forward).parameters.keys() >= CACHED
        self._kept: Any = None
        self._words_nl: Tensor | None = None

    def read(self, words_nl: Tensor) -> Tensor:
        """Return the scores (n, v) of what follows these words and all that were read before."""
        whole_nl = words_nl if self._words_nl is None else torch.cat([self._words_nl, words_nl], dim=1)
        self._words_nl = whole_nl
        if not self._keeps:
            return logits_of(self._model(whole_nl))[:, -1]
        unread_nl = whole_nl if self._kept is None else words_nl
        output = self._model(input_ids=unread_nl, past_key_values=self._kept, use_cache=True)
        self._kept = output.past_key_values
        return logits_of(output)[:, -1]


@torch.no_grad()
def is_language_model(model: nn.Module, words_nl: Tensor, vocabulary: int) -> bool:
    """Return whether a model, given words alone, scores each of the vocabulary at every place, and causally.

    Causally: another last word changes no score of a place before. The model is in evaluation mode.
    """
    if words_nl.dim() != 2 or words_nl.shape[1] < 2:
        return False
    other_nl = words_nl.clone()
    other_nl[:, -1] = (other_nl[:, -1] + 1) % vocabulary
    try:
        scores_nlv, others_nlv = (logits_of(model(each)) for each in (words_nl, other_nl))
    except Exception:  # noqa: BLE001 -- the model's own code runs here: one that wants more is none
        return False
    if scores_nlv.shape != (*words_nl.shape, vocabulary):
        return False
    return torch.allclose(scores_nlv[:, :-1], others_nlv[:, :-1], atol=1e-4, rtol=1e-3)
