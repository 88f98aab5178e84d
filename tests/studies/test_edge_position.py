"""Places of the edge made up, and those of a study small enough to run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.studies.conftest import Conducted, tiny_setup
from tpsprune_studies import edge_position
from tpsprune_studies.edge_position import EdgeTraining, EdgeTrial
from tpsprune_studies.finding import Ruling

MUON, ADAMW = (1, 1, 1, 2), (2, 2, 1, 2)


def make(muon: tuple[int, ...] = MUON, adamw: tuple[int, ...] = ADAMW) -> list[EdgeTraining]:
    found = []
    for trial in edge_position.plan(tiny_setup(edge_position), []).trials:
        assert isinstance(trial, EdgeTrial)
        places = {"muon": muon, "adamw": adamw, "sgd": (3, 3)}[trial.optimizer]
        if trial.task == edge_position.ADDITION:
            places = (5, 5)
        parts = edge_position.REGIMES[trial.task].parts
        found.append(
            EdgeTraining(
                trial=trial,
                places={"all": places, "attention": (4,)} if len(parts) == 2 else {"all": places},
                ratios=dict.fromkeys(parts, (1.0, 1.5, 9.0)),
                loss=2.0 + 0.1 * trial.seed,
                accuracy=0.5,
            )
        )
    return found


@pytest.mark.parametrize(
    ("muon", "adamw", "ruling"),
    [
        (MUON, ADAMW, Ruling.CONFIRMED),
        (MUON, MUON, Ruling.REFUTED),
        (ADAMW, ADAMW, Ruling.REFUTED),
        (MUON, (1, 2), Ruling.UNDECIDED),
        ((1, 2), MUON, Ruling.REFUTED),
    ],
)
def test_both_optimisers_must_have_their_place_on_text(
    muon: tuple[int, ...], adamw: tuple[int, ...], ruling: Ruling
) -> None:
    found = edge_position.conclude(tiny_setup(edge_position), make(muon, adamw), {})
    assert found.ruling is ruling


def test_the_page_counts_readings_by_place_for_both_kinds_of_parameters() -> None:
    found = edge_position.conclude(tiny_setup(edge_position), make(), {})
    page = found.render_page()
    assert "| text, adamw | all | 2 | 6 | 0 | 0 | 0 | 1.50 | 2.150 | 0.500 |" in page
    assert "| text, sgd | attention | 0 | 0 | 0 | 2 | 0 |" in page
    assert "| modular addition, muon | all | 0 | 0 | 0 | 0 | 4 |" in page
    assert "modular addition, muon | attention" not in page
    assert "under `muon` behind the first value in 0.75 (0.75 to 0.75) of the readings" in found.sentence
    assert found.sentence.count(".)") == 1
    predicted = {each.name: each.predicted for each in found.quantities if each.predicted}
    assert predicted == {"text, adamw, k* = 2": "above 0.5", "text, muon, k* = 1": "above 0.5"}


@pytest.mark.parametrize("task", list(edge_position.REGIMES))
def test_every_optimiser_takes_the_same_share_off_the_weights_in_a_step(task: str) -> None:
    for optimizer in edge_position.OPTIMIZERS:
        settings = edge_position.REGIMES[task].settings(optimizer)
        decay = settings["learning_rate"] * settings["weight_decay"]
        assert decay == pytest.approx(4e-3 if task == edge_position.ADDITION else 1.5e-4)


def test_every_optimiser_ends_elsewhere_from_the_same_start(conducted: Callable[[str], Conducted]) -> None:
    found = conducted("edge-position").finding
    trainings = [each for each in found.trainings if isinstance(each, EdgeTraining)]
    assert len(trainings) == 2 * 2 * 3
    assert len({each.loss for each in trainings}) == len(trainings)
    for each in trainings:
        assert set(each.places) == set(edge_position.REGIMES[each.trial.task].parts)
        assert all(len(places) == 2 and set(places) <= set(range(1, 6)) for places in each.places.values())
        assert all(ratio >= 1 for ratios in each.ratios.values() for ratio in ratios)
