"""Dimensions made up, and those of a study small enough to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.studies.conftest import Conducted, tiny_setup
from tpsprune.models.architectures import TokenMlp
from tpsprune_studies import dimension
from tpsprune_studies.dimension import MEASURES, MLE, RANK, TWO_NN, DimensionTraining, DimensionTrial
from tpsprune_studies.finding import Finding, Ruling


def make(
    share_with: float, share_without: float = 0.5, lost_with: float = 0.1, rank: float = 0.3
) -> list[DimensionTraining]:
    """All trainings of the plan: shares by the neighbours' measures, and another by the rank."""
    found = []
    for trial in dimension.plan(tiny_setup(dimension), []).trials:
        assert isinstance(trial, DimensionTrial)
        plain = trial.variant == "none"
        # Seeds differ a little, as seeds do.
        share = (share_without if plain else share_with) * (1 + 0.01 * trial.seed)
        lost = 0.2 if plain else lost_with
        groups = {"a": 0.5 * share, "b": 1.5 * share}
        found.append(
            DimensionTraining(
                trial=trial,
                accuracy=0.9,
                shares={RANK: {"a": rank, "b": rank}, MLE: groups, TWO_NN: groups},
                untrained_shares={measure: {"a": 0.2, "b": 0.04} for measure in MEASURES},
                cut_accuracies={"0.5": 0.85, "0.25": 0.9 - lost},
                seconds=1.0,
            )
        )
    return found


def conclude(done: list[DimensionTraining]) -> Finding:
    return dimension.conclude(tiny_setup(dimension), done, {})


@pytest.mark.parametrize(
    ("share", "ruling"), [(0.05, Ruling.CONFIRMED), (0.3, Ruling.REFUTED), (0.0985, Ruling.UNDECIDED)]
)
def test_the_ruling_is_on_trainings_with_tps_alone(share: float, ruling: Ruling) -> None:
    assert conclude(make(share)).ruling is ruling
    assert conclude(make(share, share_without=0.01)).ruling is ruling


def test_one_task_can_refute_and_every_task_must_confirm() -> None:
    for others, share, by_seed, ruling in (
        (0.3, 0.05, 0.001, Ruling.REFUTED),
        (0.05, 0.09, 0.01, Ruling.UNDECIDED),
    ):
        trainings = [
            replace(each, shares={**each.shares, MLE: {"a": share + by_seed * each.trial.seed}})
            if each.trial.task == dimension.PARITY
            else each
            for each in make(others)
        ]
        # The groups of the other measures go on being two.
        found = conclude([replace(each, untrained_shares=each.shares) for each in trainings])
        assert found.ruling is ruling


def test_each_measure_has_a_ruling_and_the_one_that_is_cited_is_the_studys() -> None:
    found = conclude(make(0.05))
    assert found.sentence.startswith(
        "refuted by effective rank; confirmed by Levina–Bickel, the measure that the theory cites; "
        "confirmed by TwoNN. The verdict hangs on the definition."
    )
    assert "By TwoNN: modular addition 0.05 (0.05 to 0.05), 0.51, 0.12; digits 0.05" in found.sentence
    assert "by TwoNN 6 of 6 groups lie below a tenth with TPS, 0 without and 3 untrained." in found.sentence
    same = conclude(make(0.05, rank=0.05))
    assert "The verdict is the same by each definition." in same.sentence


def test_too_few_points_decide_nothing() -> None:
    unknown = {measure: {"a": None, "b": None} for measure in MEASURES}
    found = conclude([replace(each, shares=unknown, untrained_shares=unknown) for each in make(0.05)])
    assert found.ruling is Ruling.UNDECIDED
    assert found.quantities == ()
    assert "modular addition no figure, no figure, no figure;" in found.sentence
    assert "| parity, none | a | none (none) | none (none) | none (none) |" in found.render_page()


def test_what_pruning_costs_less_is_paired_by_seed_and_told_in_points() -> None:
    found = conclude(make(0.3, lost_with=0.15))
    assert "modular addition `labels` +5.0 points (+5.0 to +5.0)" in found.sentence
    page = found.render_page()
    assert "| modular addition, none | 0.900 | 0.850 | 0.700 |" in page
    assert "| modular addition, none | a | 0.300 (0.200) | 0.254 (0.200) | 0.254 (0.200) |" in page
    assert [quantity.predicted for quantity in found.quantities][:3] == ["below 0.1", "", ""]


def test_embeddings_side_by_side_are_points_each_by_itself() -> None:
    net = TokenMlp(50, 2, 6, (80,), 3)
    # All rows lie on one line, and the two of a pair on different places of it.
    at = torch.rand(50, 1)
    net.embedding.weight.data = at @ torch.randn(1, 6)
    pairs = torch.randint(0, 50, (300, 2))
    shares = dimension.measure_shares(net, pairs)
    assert shares[RANK]["embedding"] == pytest.approx(1 / 6, rel=1e-3)
    assert shares[MLE]["embedding"] == pytest.approx(1 / 6, rel=0.2)
    few = dimension.measure_shares(net, pairs[:10])
    assert few[MLE]["embedding"] is None


def test_every_variant_ends_elsewhere(conducted: Callable[[str], Conducted]) -> None:
    found = conducted("dimension").finding
    trainings = [each for each in found.trainings if isinstance(each, DimensionTraining)]
    assert all(0 < share <= 1 for each in trainings for share in each.shares[RANK].values() if share)
    assert all(min(each.cut_accuracies.values()) >= 0 for each in trainings)
    ranks = {each.trial.arm: tuple(each.shares[RANK].values()) for each in trainings}
    assert len(set(ranks.values())) == len(ranks), "every variant does something"
    starts = {(each.trial.task, str(each.untrained_shares)) for each in trainings if each.trial.seed == 1}
    assert len(starts) == len(dimension.VARIANTS), "the variants of a seed begin alike"
