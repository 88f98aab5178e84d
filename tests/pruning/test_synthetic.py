"""Calibration data made up: equal at equal seeds, of the shapes asked for, matched to the batch norms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tpsprune
from tpsprune.errors import PruneError
from tpsprune.loop.fidelity import _foreign_batches
from tpsprune.numerics.random_networks import random_signals, random_words
from tpsprune.pruning.synthetic import match_norms, synthesize


def net(channels: int = 3) -> nn.Sequential:
    """A CNN whose batch norms have seen data that are neither centred nor white."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(channels, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 12, 3),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    )
    for seed in range(20):
        model(data(64, channels, seed))
    return model.eval()


def data(items: int, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(items, channels, 10, 10, generator=generator).cumsum(3)
    return 0.5 * noise + torch.arange(1.0, channels + 1)[:, None, None]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(5, 3, 8, 6), (4, 12), (3, 7), (2, 6, 5), (2, 1, 1)])
def test_signals_have_the_shape_and_unit_variance_and_are_equal_at_equal_seeds(
    shape: tuple[int, ...],
) -> None:
    found = random_signals(shape, generator())
    assert found.shape == shape
    assert torch.equal(found, random_signals(shape, generator()))
    if found.numel() > 20:
        assert float(found.std(unbiased=False)) == pytest.approx(1.0, rel=1e-3)
        assert not torch.equal(found, random_signals(shape, generator(1)))


def test_neighbouring_places_of_signals_are_correlated_where_those_of_noise_are_not() -> None:
    def correlation(signals: Tensor) -> float:
        left, right = signals[..., :-1].flatten(), signals[..., 1:].flatten()
        return float(torch.corrcoef(torch.stack([left, right]))[0, 1])

    found = [abs(correlation(random_signals((64, 1, 16, 16), generator(seed)))) for seed in range(6)]
    assert max(found) > 0.2 > abs(correlation(torch.randn(64, 1, 16, 16, generator=generator())))


def test_words_are_within_the_vocabulary_and_some_are_likelier_than_others() -> None:
    found = random_words(50, (64, 20), generator())
    assert found.shape == (64, 20)
    assert found.dtype == torch.int64
    assert int(found.min()) >= 0
    assert int(found.max()) < 50
    share = found.flatten().bincount(minlength=50).double() / found.numel()
    entropy = float(-(share * share.clamp_min(1e-12).log()).sum())
    assert entropy < 0.97 * math.log(50)


def test_the_mismatch_is_its_closed_form_and_falls_forty_times() -> None:
    model = net()
    made = synthesize(model, torch.zeros(1, 3, 10, 10), 128, steps=0)
    (batch,) = made.batches
    wanted, inputs = 0.0, batch
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.BatchNorm2d):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                mean, spread = inputs.mean((0, 2, 3)), inputs.var((0, 2, 3), unbiased=False)
                wanted += float(((mean - layer.running_mean) ** 2 / layer.running_var).mean())
                wanted += float(((spread / layer.running_var).sqrt() - 1).square().mean())
            inputs = layer(inputs)
    assert made.mismatch_before == made.mismatch_after == pytest.approx(wanted, rel=1e-3)
    matched = synthesize(model, torch.zeros(1, 3, 10, 10), 128)
    assert matched.mismatch_before == made.mismatch_before
    assert matched.mismatch_after is not None
    assert matched.mismatch_after < wanted / 40


def test_the_model_is_as_it_was_and_gradients_are_nobodys() -> None:
    model = net().train()
    model[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    synthesize(model, torch.zeros(1, 3, 10, 10), 16, steps=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert [each.requires_grad for each in model.parameters()] == [False] + [True] * 9
    assert all(each.grad is None for each in model.parameters())


def test_large_items_are_matched_few_at_a_time() -> None:
    made = synthesize(nn.Sequential(nn.Flatten(), nn.Linear(120_000, 1)), torch.zeros(1, 3, 200, 200), 64)
    assert [len(batch) for batch in made.batches] == [32, 32]


def test_equal_seeds_give_equal_items_whatever_the_state_of_the_generator() -> None:
    model = net()
    first = synthesize(model, torch.zeros(1, 3, 10, 10), 150, steps=2)
    torch.manual_seed(99)
    second = synthesize(model, torch.rand(4, 3, 10, 10), 150, steps=2)
    assert [len(each) for each in first.batches] == [75, 75]
    for one, other in zip(first.batches, second.batches, strict=True):
        assert torch.equal(one, other)
    other = synthesize(model, torch.zeros(1, 3, 10, 10), 150, steps=2, seed=1)
    assert not torch.equal(other.batches[0], first.batches[0])


class Reader(nn.Module):
    """Reads tokens with a mask, and a table of numbers beside."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 16)
        self.hidden = nn.Linear(16 + 3, 32)
        self.out = nn.Linear(32, 5)

    def forward(self, ids: Tensor, mask: Tensor, numbers: Tensor) -> Tensor:
        weights = mask[..., None].float()
        mean = (self.words(ids) * weights).sum(1) / weights.sum(1)
        found: Tensor = self.out(self.hidden(torch.cat([mean, numbers], 1)).relu())
        return found


def test_of_several_parts_tokens_and_floats_are_made_up_and_masks_taken() -> None:
    torch.manual_seed(0)
    like = {
        "ids": torch.zeros(2, 6, dtype=torch.int64),
        "mask": torch.tensor([[1, 1, 1, 0, 0, 0], [1] * 6]),
        "numbers": torch.zeros(2, 3),
    }
    made = synthesize(Reader(), like, 64)
    (batch,) = made.batches
    assert batch["ids"].unique().numel() > 10
    assert int(batch["ids"].max()) < 40
    assert torch.equal(batch["mask"], like["mask"].repeat(32, 1))
    assert batch["numbers"].unique().numel() > 100
    assert made.mismatch_after is None
    assert "no batch norms to match" in made.note


def test_an_extraction_without_data_says_so_and_repairs_nothing() -> None:
    model = net()
    found = tpsprune.extract(model, "synthetic", example=torch.zeros(1, 3, 10, 10))
    made = synthesize(model, torch.zeros(1, 3, 10, 10))
    alone = tpsprune.extract(model, list(made.batches), repair=False)
    assert found.plan == alone.plan
    assert any("made up" in note and "no data used" in note for note in found.notes)
    assert not any("repair" in note for note in found.notes)
    for name, value in alone.ticket.state_dict().items():
        assert torch.equal(value, found.ticket.state_dict()[name])
    family = tpsprune.family(model, "synthetic", sizes=(0.5,), example=torch.zeros(1, 3, 10, 10))
    assert family[0.5].plan == found.plan


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"calibration_data": "synthetc", "example": 1}, r"'synthetc' \(did you mean 'synthetic'\?\)"),
        ({"calibration_data": "synthetic"}, r"needs example: a batch of inputs"),
        ({"calibration_data": data(8), "example": data(1)}, r"example is read with calibration_data"),
        ({"calibration_data": "synthetic", "example": data(0)}, "holds no item"),
        ({"calibration_data": "synthetic", "example": data(2)[..., :1, :1]}, "does not take the example"),
        (
            {"calibration_data": "synthetic", "example": torch.zeros(2, 3, dtype=torch.int64)},
            "neither floats nor",
        ),
        (
            {"calibration_data": "synthetic", "example": torch.zeros(1, 3, 10, 10), "units": "taylor"},
            "labels",
        ),
    ],
)
def test_what_cannot_be_made_up_is_one_message(given: dict[str, Any], words: str) -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.net(x.float()) if x.dim() == 4 else x.float() @ self.net[8].weight[:3, :3]
            return found

    with pytest.raises(PruneError, match=words):
        tpsprune.extract(Sums(), **given)


def test_the_best_items_are_kept_where_steps_lead_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpsprune.pruning.synthetic.LEARNING_RATE", 1e4)
    model = net()
    norms = [each for each in model if isinstance(each, nn.BatchNorm2d)]
    found = match_norms(model, data(64), norms, 3)
    assert found.after == found.before
    assert match_norms(model, found.batch, norms, 0).before == pytest.approx(found.after)


class Twice(nn.Module):
    """A norm that floats reach, called by keyword, one that only tokens reach, one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 6)
        self.of_words, self.of_numbers, self.idle = nn.BatchNorm1d(6), nn.BatchNorm1d(6), nn.BatchNorm1d(6)
        self.places = nn.Embedding(9, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, ids: Tensor, places: Tensor, numbers: Tensor) -> Tensor:
        numbers += 1.0
        words = self.of_words(self.words(ids).mean(1) + self.places(places).mean(1))
        found: Tensor = self.out(words + self.of_numbers(input=numbers))
        return found


def test_only_norms_that_floats_reach_are_matched_and_places_are_taken_as_they_are() -> None:
    torch.manual_seed(0)
    like = {
        "ids": torch.zeros(2, 5, dtype=torch.int32),
        "places": torch.arange(5).repeat(2, 1),
        "numbers": torch.zeros(2, 6),
    }
    made = synthesize(Twice().eval(), like, 129, steps=40)
    assert [len(batch["ids"]) for batch in made.batches] == [65, 64]
    for batch in made.batches:
        assert batch["ids"].dtype == torch.int32
        assert batch["ids"].unique().numel() > 10
        assert torch.equal(batch["places"], like["places"][:1].expand(len(batch["places"]), -1))
    assert made.mismatch_before is not None
    assert made.mismatch_after is not None
    assert made.mismatch_after < made.mismatch_before
    tokens = nn.Sequential(nn.Embedding(40, 6), nn.Flatten(), nn.BatchNorm1d(30), nn.Linear(30, 2)).eval()
    assert synthesize(tokens, torch.zeros(2, 5, dtype=torch.int64), 32).mismatch_after is None


@pytest.mark.parametrize("shape", [(2, 1, 16_000), (2, 10_007), (2, 3, 700), (3, 1)])
def test_long_rows_are_folded_and_short_ones_are_finite(shape: tuple[int, ...]) -> None:
    found = random_signals(shape, generator())
    assert found.shape == shape
    assert bool(found.isfinite().all())


def test_a_model_whose_norms_see_no_numbers_is_refused() -> None:
    model = net()
    assert isinstance(model[1], nn.BatchNorm2d)
    assert model[1].running_mean is not None
    model[1].running_mean[0] = torch.nan
    with pytest.raises(PruneError, match="see items made up that are not finite"):
        synthesize(model, torch.zeros(1, 3, 10, 10), 16, steps=1)


class Counts(nn.Module):
    """Surely goes on with the next number; ``ahead`` lets a place see the one behind it."""

    def __init__(self, *, ahead: bool = False) -> None:
        super().__init__()
        self.words, self.ahead = nn.Embedding(40, 40), ahead
        with torch.no_grad():
            self.words.weight.copy_(50.0 * torch.eye(40).roll(1, dims=1))

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.words(ids)
        return scores + scores.roll(-1, 1) if self.ahead else scores


def test_a_language_model_writes_the_words_it_is_calibrated_on() -> None:
    like = torch.zeros(2, 6, dtype=torch.int32)
    made = synthesize(Counts(), like, 200)
    words = torch.cat(made.batches)
    assert words.shape == (200, 6)
    assert words.dtype == torch.int32
    assert torch.equal(words[:, 1:], (words[:, :-1] + 1) % 40)
    assert words[:, 0].unique().numel() > 30
    assert made.written
    assert made.note.startswith("calibrated on 200 items that the model wrote in 0 s, no data used")


@pytest.mark.parametrize(("ahead", "own_words"), [(True, True), (False, False)])
def test_a_model_that_sees_ahead_or_must_not_write_gets_words_of_random_networks(
    ahead: bool,
    own_words: bool,
) -> None:
    made = synthesize(Counts(ahead=ahead), torch.zeros(2, 6, dtype=torch.int64), 64, own_words=own_words)
    assert torch.equal(made.batches[0], random_words(40, (64, 6), generator()))
    assert not made.written
    assert "real data would do much better" in made.note


def test_foreign_words_are_not_the_models_own() -> None:
    found, _ = _foreign_batches(Counts(), [torch.arange(3, 9).repeat(8, 1)], None, 0)
    words = torch.cat([each for each in found if isinstance(each, Tensor)])
    assert not torch.equal(words[:, 1:], (words[:, :-1] + 1) % 40)
