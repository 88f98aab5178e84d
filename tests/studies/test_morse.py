"""Indices made up, and those of a study small enough to run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.studies.conftest import Conducted, small_recipe
from tests.unchanged import unchanged
from tpsprune import recipe
from tpsprune_studies import morse
from tpsprune_studies.finding import Ruling
from tpsprune_studies.morse import MorseTraining, MorseTrial, Point
from tpsprune_studies.setup import at_seed, prepare


def point(index: int) -> Point:
    return Point(
        step=10,
        loss=0.4,
        gradient_norm=0.1,
        index=index,
        smallest=-0.1,
        largest=1.0,
        negative_share=0.3,
    )


def make(shift: int, *, levels: int = 3, at_minima: int | None = None) -> list[MorseTraining]:
    """Trainings of three seeds, the index with ``labels`` moved by ``shift``, at minima by ``at_minima``."""
    found = []
    for trial in morse.plan(morse.make_setup(small_recipe(), 3, None), []).trials:
        assert isinstance(trial, MorseTrial)
        moved = shift if trial.variant == "labels" else 0
        at = moved if at_minima is None or trial.variant != "labels" else at_minima
        training = MorseTraining(
            trial=trial,
            parameters=771,
            accuracy=0.5,
            points={f"{loss:g}": point(200 + trial.seed + moved) for loss in morse.LOSSES[:levels]},
            minima=tuple(point(100 + rank + at) for rank in (0, 4, 2)[: 3 if levels else 0]),
            gradient_norm=0.2,
        )
        found.append(training)
    return found


@pytest.mark.parametrize(("shift", "ruling"), [(-9, Ruling.CONFIRMED), (5, Ruling.REFUTED)])
def test_the_index_must_fall_at_every_loss_and_at_the_minima(shift: int, ruling: Ruling) -> None:
    found = morse.conclude(morse.make_setup(small_recipe(), 3, None), make(shift), {})
    assert found.ruling is ruling
    assert f"{shift:+.1f} ({shift:+.1f} to {shift:+.1f}) for `labels` at a loss of 0.3" in found.sentence
    assert f"{shift:+.1f} ({shift:+.1f} to {shift:+.1f}) for `labels` at the minima on" in found.sentence


def test_lower_at_equal_loss_alone_decides_nothing() -> None:
    found = morse.conclude(morse.make_setup(small_recipe(), 3, None), make(-9, at_minima=1), {})
    assert found.ruling is Ruling.UNDECIDED
    assert "+1.0 (+1.0 to +1.0) for `labels` at the minimum of highest index." in found.sentence


def test_of_the_minima_the_mean_and_the_highest_are_compared() -> None:
    (first, *_) = make(0)
    assert first.indices["the minima on average"] == 102
    assert first.indices["the minimum of highest index"] == 104
    (none, *_) = make(0, levels=0)
    assert none.indices == {}


def test_a_level_that_nobody_reached_confirms_nothing() -> None:
    found = morse.conclude(morse.make_setup(small_recipe(), 3, None), make(-9, levels=1), {})
    assert found.ruling is Ruling.UNDECIDED
    assert "at a loss of 0.3" not in found.sentence


def test_a_minimum_is_below_all_that_is_in_reach_on_either_side() -> None:
    bowl = [abs(step - 30.0) for step in range(61)]
    found = [steps - 1 - morse.REACH for steps in range(62) if morse.is_minimum(bowl[:steps])]
    assert found == [30]
    assert not morse.is_minimum([1.0] * 60), "level ground has none"
    assert not morse.is_minimum([*bowl[:40], 0.0, *bowl[41:56]]), "as low again within reach"


def test_a_point_has_the_gradient_of_the_model_and_leaves_it() -> None:
    model = nn.Linear(3, 1, bias=False)
    inputs = torch.eye(3, dtype=torch.float64)

    def loss_of(net: nn.Module) -> torch.Tensor:
        return (
            net(inputs.to(net.weight.dtype if isinstance(net, nn.Linear) else torch.float64)).square().sum()
        )

    with unchanged(model):
        found = morse.read_point(7, model, loss_of)
    weight = model.weight.detach().double()
    assert found.gradient_norm == pytest.approx(float(2 * weight.norm()), rel=1e-5)
    assert found.loss == pytest.approx(float(weight.square().sum()), rel=1e-5)
    assert (found.index, found.smallest, found.largest) == (0, pytest.approx(2.0), pytest.approx(2.0))


def test_indices_are_read_on_the_way_down(conducted: Callable[[str], Conducted]) -> None:
    trainings = [each for each in conducted("morse").finding.trainings if isinstance(each, MorseTraining)]
    points = [each.points for each in trainings if each.points]
    assert points
    for each in points:
        assert all(0 < point.index < trainings[0].parameters for point in each.values())
        steps = [point.step for point in each.values()]
        assert steps == sorted(steps)


def test_minima_have_the_weights_of_the_steps_at_which_a_replay_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(morse, "REACH", 3)
    monkeypatch.setattr(morse, "LOSSES", ())
    found = morse.run(
        morse.make_setup(recipe.read("modular-addition"), 2, 60), MorseTrial(variant="none", seed=1)
    )
    train = {"weight_decay": morse.WEIGHT_DECAY, "learning_rate": morse.LEARNING_RATE}
    prepared = prepare(at_seed(recipe.read("modular-addition", morse.CHANGES), 1, **train))
    split = prepared.dataset.train
    norms = [
        morse.gradient_norm(
            prepared.model, lambda net: functional.cross_entropy(net(split.inputs), split.labels)
        )
        for _ in prepared.fit(60)
    ]
    low = [place for place in range(3, 57) if norms[place] == min(norms[place - 3 : place + 4])]
    assert low
    assert [each.step for each in found.minima] == [place + 1 for place in low]
    assert [each.gradient_norm for each in found.minima] == pytest.approx([norms[place] for place in low])
