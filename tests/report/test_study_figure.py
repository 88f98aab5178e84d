"""The picture of a study says what its record says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tpsprune.report.study_figure import draw_study


def record(low: float | None, high: float | None) -> dict[str, Any]:
    def quantity(name: str, predicted: str) -> dict[str, Any]:
        return {"name": name, "predicted": predicted, "measured": {"mean": 3.0, "low": 2.0, "high": 4.0}}

    return {
        "study": "tides",
        "verdict": "undecided",
        "measure": "height in metres",
        "predicted_range": {"low": low, "high": high},
        "quantities": [quantity("spring", "more"), quantity("neap", "")],
    }


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(1.0, 5.0, "1 to 5"), (1.0, None, "above 1"), (None, 0.1, "below 0.1")],
)
def test_the_picture_names_its_quantities_and_what_was_predicted(
    tmp_path: Path, low: float | None, high: float | None, words: str
) -> None:
    file = tmp_path / "tides.json"
    file.write_text(json.dumps(record(low, high)))
    picture = draw_study(file)
    assert picture == tmp_path / "tides.svg"
    drawn = picture.read_text()
    for label in (
        "spring",
        "neap",
        "height in metres, mean and 95 % interval",
        f"tides: undecided (orange: predicted, {words})",
    ):
        assert label in drawn
    assert draw_study(file).read_text() == drawn


def test_a_study_that_measured_nothing_still_has_a_picture(tmp_path: Path) -> None:
    file = tmp_path / "tides.json"
    file.write_text(json.dumps({**record(1.0, None), "quantities": []}))
    assert "tides: undecided" in draw_study(file).read_text()
