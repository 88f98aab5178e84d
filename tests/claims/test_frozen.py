"""A frozen encoder is claimed to save beside shorter fine-tuning only."""

from __future__ import annotations

import pytest

from tests.claims.conftest import design, run
from tests.claims.test_opponents import SCATTER
from tpsprune.claims import assess
from tpsprune.records import ComparisonRecord, Standing

DENSE = (100.0, 103.0, 98.0, 101.0, 99.0, 102.0)
FROZEN = (31.0, 30.0, 29.0, 30.5, 30.0, 31.5)


def comparison(arm: str, tuned: float | None, frozen: float = 0.0) -> ComparisonRecord:
    """Return six pairs of a dense model, a frozen one and shorter fine-tuning, by what each differs in."""
    runs = []
    for pair, (joules, mine) in enumerate(zip(DENSE, FROZEN, strict=True)):
        runs += [
            run("dense", pair, joules, 0.9 + SCATTER[pair]),
            run(arm, pair, mine, 0.9 + frozen - SCATTER[pair]),
        ]
        runs += [] if tuned is None else [run("fine-tune-joules", pair, mine, 0.9 + tuned - SCATTER[pair])]
    arms = ("dense", arm, *(() if tuned is None else ("fine-tune-joules",)))
    return ComparisonRecord(design=design(*arms), runs=tuple(runs), pairs_asked=len(DENSE))


@pytest.mark.parametrize("arm", ["frozen", "frozen-ticket"])
@pytest.mark.parametrize(
    ("tuned", "frozen", "standing", "code"),
    [
        (-0.02, 0.0, Standing.SAVING_MEASURED, "ALL_RUNGS_HELD"),
        (0.0, 0.0, Standing.SHORTER_SCHEDULE_DOES_AS_WELL, "NOT_BETTER"),
        (None, 0.0, Standing.INSUFFICIENT_RUNS, "OPPONENT_NOT_RUN"),
        (-0.1, -0.08, Standing.ACCURACY_NOT_PRESERVED, "ACCURACY_BOUND"),
    ],
)
def test_a_saving_of_a_frozen_encoder_needs_its_opponent_beaten_and_accuracy_kept(
    arm: str, tuned: float | None, frozen: float, standing: Standing, code: str
) -> None:
    verdict = assess(comparison(arm, tuned, frozen)).verdict
    assert (verdict.arm, verdict.standing, verdict.reasons[0].code) == (arm, standing, code)
    if standing.is_saving:
        assert verdict.statement.endswith("than 'dense', and no shorter fine-tuning does as well.")


def test_fine_tuning_itself_prunes_nothing_and_needs_no_opponent() -> None:
    verdict = assess(comparison("fine-tune", None)).verdict
    assert verdict.standing is Standing.SAVING_MEASURED
