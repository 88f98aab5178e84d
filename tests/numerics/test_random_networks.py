"""Sequences that random networks pass on: within the vocabulary, drawn by the seed, not noise any more."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tpsprune.numerics import random_networks
from tpsprune.numerics.random_networks import iterated_words


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def entropy_within(words_nl: Tensor, vocabulary: int) -> float:
    """Return the mean entropy of the words of a sequence, in nats."""
    counts_nv = torch.zeros(len(words_nl), vocabulary).scatter_add_(1, words_nl, torch.ones(words_nl.shape))
    share_nv = counts_nv / words_nl.shape[1]
    return float(-(share_nv * share_nv.clamp_min(1e-12).log()).sum(1).mean())


def test_words_are_within_the_vocabulary_and_equal_at_equal_seeds() -> None:
    found = iterated_words(40, (70, 24), generator())
    assert found.shape == (70, 24)
    assert found.dtype == torch.int64
    assert int(found.min()) >= 0
    assert int(found.max()) == 39
    assert torch.equal(found, iterated_words(40, (70, 24), generator()))
    assert not torch.equal(found, iterated_words(40, (70, 24), generator(1)))
    assert len(found.unique(dim=0)) == 70


def test_a_sequence_has_fewer_words_than_noise_and_each_network_its_own() -> None:
    found, noise = (
        iterated_words(40, (256, 64), generator()),
        torch.randint(40, (256, 64), generator=generator()),
    )
    assert entropy_within(found, 40) < entropy_within(noise, 40) - 0.3
    whole = found.flatten().bincount(minlength=40).double() / found.numel()
    assert float(-(whole * whole.log()).sum()) > 0.95 * math.log(40)


def test_what_is_always_reset_is_read_once_however_long_it_is_passed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passed = iterated_words(40, (256, 64), generator())
    monkeypatch.setattr(random_networks, "RESET", 2.0)
    reset = iterated_words(40, (256, 64), generator())
    assert entropy_within(passed, 40) < entropy_within(reset, 40) - 0.03
