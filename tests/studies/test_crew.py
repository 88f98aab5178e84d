"""Jobs side by side: each done once, as they come due, and what goes wrong in a worker is heard."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tpsprune.studies.catalogue import STUDIES
from tpsprune.studies.conduct import conduct
from tpsprune.studies.crew import in_turn, side_by_side
from tpsprune.studies.finding import Finding
from tpsprune.studies.speed_up import SpeedUp

Way = Callable[[Callable[[], Sequence[int]], Callable[[int], int]], Iterator[int]]


def by_two(due: Callable[[], Sequence[int]], do: Callable[[int], int]) -> Iterator[int]:
    return side_by_side(due, do, 2)


@pytest.mark.parametrize("way", [in_turn, by_two])
def test_each_is_done_once_and_what_becomes_due_on_the_way_too(way: Way) -> None:
    done: list[int] = []

    def due() -> Sequence[int]:
        # Seven comes due only once three is known.
        wanted = [3, 4, 5, *([7] if math.factorial(3) in done else [])]
        return [job for job in wanted if math.factorial(job) not in done]

    for result in way(due, math.factorial):
        done += [result]
    assert sorted(done) == [math.factorial(job) for job in (3, 4, 5, 7)]


@pytest.mark.parametrize("way", [in_turn, by_two])
def test_what_goes_wrong_with_a_job_is_heard(way: Way) -> None:
    with pytest.raises(ValueError, match="negative"):
        list(way(lambda: [-1], math.factorial))


def without_times(line: str) -> dict[str, Any]:
    training = json.loads(line)["training"]
    return {key: value for key, value in training.items() if "seconds" not in key}


def test_a_study_by_two_does_the_trainings_of_one_by_one(tiny: SpeedUp, tmp_path: Path) -> None:
    found = {}
    for workers in (1, 2):
        out = tmp_path / str(workers)
        *lines, last = conduct(STUDIES["speed-up"], tiny, out, workers)
        assert isinstance(last, Finding)
        assert len(lines) == 8
        journal = (out / "speed-up.jsonl").read_text().splitlines()
        found[workers] = sorted(json.dumps(without_times(line), sort_keys=True) for line in journal)
    assert found[1] == found[2]
