"""A study and a comparison on a cluster find what they find here, a kill and an interrupt on the way."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.claims.conftest import comparison, run
from tests.pipeline.test_compare import TWO, compared, measured, quick
from tests.studies.conftest import make_tiny
from tpsprune import pipeline
from tpsprune.claims import assess
from tpsprune.errors import WorkerError
from tpsprune.jobs.address import Address
from tpsprune.jobs.cluster import Cluster
from tpsprune.pipeline.machines import (
    LOCK,
    _due_pairs,
    _read_lines,
    _refuse_other_meters,
    alone,
    identify_machine,
)
from tpsprune.records import ArmEnded, ArmRun, Comparing, dump
from tpsprune.runs import ComparisonFolder
from tpsprune_studies.catalogue import STUDIES
from tpsprune_studies.conduct import conduct
from tpsprune_studies.finding import Finding

pytestmark = pytest.mark.xdist_group("dask")


def journal_of(folder: Path) -> list[str]:
    """The lines of a study's journal but for its seconds, in an order of their own."""
    lines = [json.loads(line) for line in (folder / "speed-up.jsonl").read_text().splitlines()]
    for line in lines:
        line["training"] = {key: each for key, each in line["training"].items() if "seconds" not in key}
    return sorted(json.dumps(line, sort_keys=True) for line in lines)


def test_a_study_on_a_cluster_that_loses_a_worker_is_the_study_made_here(
    address: Address, cluster: Cluster, tmp_path: Path
) -> None:
    *_, here = conduct(STUDIES["speed-up"], make_tiny(), tmp_path / "here")
    (tmp_path / "afar").mkdir()
    begun = (tmp_path / "here" / "speed-up.jsonl").read_text().splitlines(keepends=True)[:4]
    (tmp_path / "afar" / "speed-up.jsonl").write_text("".join(begun))
    afar = conduct(STUDIES["speed-up"], make_tiny(), tmp_path / "afar", address)
    assert str(next(afar)).startswith("5/8 pair seed ")
    os.kill(next(iter(cluster.client.run(os.getpid).values())), signal.SIGKILL)
    *lines, found = afar
    assert len(lines) == 3
    assert journal_of(tmp_path / "afar") == journal_of(tmp_path / "here")
    assert isinstance(here, Finding)
    assert isinstance(found, Finding)
    assert found.machine == here.machine
    assert [each.trial for each in found.trainings] == [each.trial for each in here.trainings]


@pytest.fixture
def elsewhere(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    """Where the workers write."""
    before = next(iter(cluster.client.run(os.getcwd).values()))
    (place := tmp_path / "elsewhere").mkdir()
    cluster.client.run(os.chdir, str(place))
    yield place
    cluster.client.run(os.chdir, before)


def compare_afar(folder: Path, address: Address, pairs: int = 2) -> Iterator[Comparing]:
    return pipeline.compare_on_machines(
        quick(), ComparisonFolder(folder), address, arms=TWO, pairs=pairs, device="cpu"
    )


def without_place(run: ArmRun) -> dict[str, Any]:
    """What a run holds but for where and when it was made, and what a clock says."""
    windows = [replace(each, started="") for each in run.windows]
    return {
        name: getattr(run, name)
        for name in (
            "arm",
            "seed",
            "pair",
            "method",
            "accuracy",
            "weights_sha256",
            "macs",
            "epochs",
            "history",
        )
    } | {"windows": windows}


def test_pairs_made_on_machines_are_the_pairs_made_here_and_one_that_is_lost_is_on_the_bill(
    address: Address, elsewhere: Path, tmp_path: Path
) -> None:
    afar, here = tmp_path / "afar", tmp_path / "here"
    events = compare_afar(afar, address)
    first = next(event for event in events if isinstance(event, ArmEnded))
    events.close()  # type: ignore[attr-defined]
    (lost,) = {0, 1} - {first.run.pair}
    half = measured(afar)
    assert {run.pair for run in half.runs} == {first.run.pair}, "a pair is there whole, or not at all"
    assert half.under_way == f"'dense', seed {lost}, has begun and not ended"
    *_, _last = compare_afar(afar, address)
    found = measured(afar)
    (broken,) = [each for each in found.broken_off if each.pair is not None]
    assert (broken.arm, broken.pair, broken.windows, broken.why) == ("dense", lost, (), "")
    assert len([each for each in found.broken_off if each.pair is None]) == 2, "a warm-up for each pair"
    compared(here, TWO, 2)
    expected = measured(here)
    for pair in (0, 1):
        mine, other = (
            [without_place(run) for run in each.runs if run.pair == pair] for each in (found, expected)
        )
        assert mine == other, "the same runs in the same order"
        spans = [
            [(span.arm, span.batch) for span in each.inference if span.pair == pair]
            for each in (found, expected)
        ]
        assert spans[0] == spans[1]
    assert [span.pair for span in sorted(found.idle, key=lambda span: span.pair)] == [0, 1]
    (machine,) = {run.machine for run in found.runs}
    assert len(machine) == 12
    positions = [each.position for each in (*found.runs, *found.broken_off)]
    assert sorted(positions) == list(range(len(positions)))
    assert assess(found).complete
    assert len(list(elsewhere.glob("reports/small-pairs/*/runs/*/*/*.safetensors"))) >= 4, "models stay there"
    assert str(elsewhere) not in (afar / "journal.jsonl").read_text()


def test_pairs_that_cannot_be_pooled_or_go_on_elsewhere_are_refused(tmp_path: Path) -> None:
    folder = ComparisonFolder(tmp_path)
    found = comparison([100.0] * 2, [50.0] * 2, asked=3)
    method = dump(found.runs[0].method)
    _refuse_other_meters(folder, found, {"method": method})
    other = {**method, "classes": {"cpu": "modelled"}}
    with pytest.raises(
        WorkerError, match=r"another way.*: method\.classes\.cpu is 'measured' there and 'mod"
    ):
        _refuse_other_meters(folder, found, {"method": other})
    assert _due_pairs(found) == [2]
    assert _due_pairs(replace(found, runs=())) == [0, 1, 2]
    with pytest.raises(WorkerError, match=r"^pair 2 was begun on one machine.* go on without --machines"):
        _due_pairs(replace(found, runs=found.runs[:-1]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"kind": "idle"}, "pair is missing"),
        ({"kind": "design"}, "its kind is 'design'"),
        ({"kind": "choices"}, "its kind is 'choices'"),
        ({"kind": "run", **dump(run("small", 1, 50.0))}, "another pair than 1"),
    ],
)
def test_what_a_worker_sends_is_read_strictly(line: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkerError, match=message):
        _read_lines("dask:x", [line], 0)


def test_who_makes_a_pair_is_alone_on_its_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for _ in range(2):
        with alone(), (tmp_path / LOCK).open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (tmp_path / LOCK).open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_machine_is_told_apart_and_not_named() -> None:
    name = identify_machine("one")
    assert name == identify_machine("one") != identify_machine("two")
    assert len(name) == 12
    assert int(name, 16) >= 0
