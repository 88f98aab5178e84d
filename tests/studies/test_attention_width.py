"""The law of wide attention, by its own closed forms, and the study's verdict."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.studies.conftest import Conducted, small_recipe
from tpsprune_studies import attention_width
from tpsprune_studies.attention_width import WidthTraining, WidthTrial, draw_outputs, gram_of_inputs
from tpsprune_studies.finding import Ruling


def kurtosis(values: torch.Tensor) -> float:
    return float(values.pow(4).mean() / values.square().mean() ** 2)


def test_one_place_has_one_score_and_the_output_is_gaussian() -> None:
    root = torch.linalg.cholesky(gram_of_inputs(1))
    found = draw_outputs(root, 200_000, 1, 0, torch.Generator().manual_seed(0)).double()
    assert float(found.var()) == pytest.approx(attention_width.LENGTH, rel=0.02)
    assert kurtosis(found) == pytest.approx(3.0, abs=0.05)


def test_places_all_alike_mix_to_themselves_whatever_the_scores() -> None:
    root = torch.zeros(4, 4)
    root[:, 0] = 1.0  # L Lᵀ is one everywhere: every value is the same number.
    found = draw_outputs(root, 100_000, 2, 16, torch.Generator().manual_seed(1)).double()
    assert float(found.var()) == pytest.approx(1.0, rel=0.02)
    assert kurtosis(found) == pytest.approx(3.0, abs=0.06)


def test_finite_widths_come_to_the_limit() -> None:
    root = torch.linalg.cholesky(gram_of_inputs(6))
    limit, narrow, wide = (
        draw_outputs(root, 60_000, 1, width, torch.Generator().manual_seed(2)).double()
        for width in (0, 1, 64)
    )
    assert kurtosis(limit) > 3.1
    assert abs(float(wide.var() - limit.var())) < abs(float(narrow.var() - limit.var()))
    assert float(wide.var()) == pytest.approx(float(limit.var()), rel=0.04)


def test_the_limit_must_be_heavier_tailed_than_a_gaussian() -> None:
    setup = attention_width.make_setup(small_recipe(), 3, None)

    def done(excess: float) -> list[WidthTraining]:
        return [
            WidthTraining(trial=trial, kurtosis=3 + excess / trial.heads + 0.001 * trial.seed, variance=1.0)
            for trial in attention_width.plan(setup, []).trials
            if isinstance(trial, WidthTrial)
        ]

    assert attention_width.conclude(setup, done(0.3), {}).ruling is Ruling.CONFIRMED
    assert attention_width.conclude(setup, done(-0.3), {}).ruling is Ruling.REFUTED


def test_a_small_study_runs(conducted: Callable[[str], Conducted]) -> None:
    assert len(conducted("attention-width").finding.trainings) == 2 * 3 * 3
