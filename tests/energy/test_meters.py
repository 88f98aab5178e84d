"""Every meter but codecarbon's: what all hold to, the simulated one, the absent one, and the replayed one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.recipe.test_read import LEAST
from tpsprune import recipe
from tpsprune.energy import AbstractMeter, build, by_phase, class_of, total
from tpsprune.energy.counters import NvmlBoards
from tpsprune.energy.fake import FakeMeter
from tpsprune.energy.machine import MachineTimes, machine_times, split_times
from tpsprune.energy.meter import Count
from tpsprune.errors import MeterError, RecipeError, RunFolderError
from tpsprune.recipe.train import Energy
from tpsprune.records import EnergyClass, Window, dump, load
from tpsprune.runs import Journal


def fake(**settings: Any) -> AbstractMeter:
    return build(Energy(meter="fake", **settings), attempt=0)


def window_of(meter: AbstractMeter, phase: str = "train") -> Window:
    with meter.window(phase) as span:
        pass
    return span.window


def windows_of(meter: AbstractMeter, phases: list[str]) -> list[Window]:
    return [window_of(meter, phase) for phase in phases]


def fakes(count: int, attempt: int = 0, **settings: Any) -> list[Window]:
    return windows_of(build(Energy(meter="fake", **settings), attempt=attempt), ["train"] * count)


PHASES = st.lists(st.sampled_from(["train", "evaluate", "watch", "prune"]), min_size=1, max_size=12)


def test_joules_are_watts_times_seconds_times_pue() -> None:
    meter = fake(fake_cpu_watts=10.0, fake_ram_watts=5.0, fake_window_seconds=2.0, pue=1.5)
    (window,) = windows_of(meter, ["train"])
    assert window.joules == {"cpu": 30.0, "ram": 15.0}
    assert window.total_joules == 45.0
    assert (window.seconds, window.cpu_seconds) == (2.0, 2.0)
    assert window.classes == {"cpu": EnergyClass.SIMULATED, "ram": EnergyClass.SIMULATED}
    assert window.valid


def test_the_same_calls_give_the_same_windows() -> None:
    phases = ["train", "evaluate", "train"]
    assert windows_of(fake(), phases) == windows_of(fake(), phases)
    assert [window.started for window in windows_of(fake(), phases)] == [
        "2000-01-01T00:00:00.000Z",
        "2000-01-01T00:00:01.000Z",
        "2000-01-01T00:00:02.000Z",
    ]


def test_windows_are_numbered_by_phase_and_carry_the_attempt() -> None:
    meter = build(Energy(meter="fake"), attempt=3)
    windows = windows_of(meter, ["train", "evaluate", "train"])
    numbered = [(window.phase, window.index) for window in windows]
    assert numbered == [("train", 0), ("evaluate", 0), ("train", 1)]
    assert {window.attempt for window in windows} == {3}


@given(phases=PHASES, cut=st.integers(0, 12))
def test_the_sum_over_phases_is_the_total_and_energy_is_additive(phases: list[str], cut: int) -> None:
    windows = windows_of(fake(), phases)
    parts = total(windows[:cut]), total(windows[cut:])
    assert sum(part.joules or 0.0 for part in parts) == pytest.approx(total(windows).joules)
    assert sum(part.seconds for part in parts) == pytest.approx(total(windows).seconds)
    sums = by_phase(windows)
    assert sum(phase.joules or 0.0 for phase in sums.values()) == pytest.approx(total(windows).joules)
    assert sum(phase.windows for phase in sums.values()) == len(phases)
    assert list(sums) == list(dict.fromkeys(phases))
    for phase in sums.values():
        assert sum(phase.joules_by_component.values()) == pytest.approx(phase.joules)


@given(watts=st.floats(0.1, 1e3), phases=PHASES)
def test_twice_the_watts_are_twice_the_joules(watts: float, phases: list[str]) -> None:
    once = total(windows_of(fake(fake_cpu_watts=watts, fake_ram_watts=watts), phases))
    twice = total(windows_of(fake(fake_cpu_watts=2 * watts, fake_ram_watts=2 * watts), phases))
    assert once.joules is not None
    assert twice.joules == pytest.approx(2 * once.joules)
    assert twice.seconds == once.seconds


def test_windows_never_nest() -> None:
    meter = fake()
    meter.open("train")
    with pytest.raises(MeterError, match="'evaluate' while one of 'train' is open"):
        meter.open("evaluate")
    assert meter.close().phase == "train"
    with pytest.raises(MeterError, match="no window is open"):
        meter.close()


def test_a_block_that_raises_is_still_on_the_bill() -> None:
    meter = fake()
    span = meter.window("train")

    def fail() -> None:
        with span:
            raise KeyboardInterrupt

    with pytest.raises(MeterError, match="not closed yet"):
        _ = span.window
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert span.window.joules
    assert not meter.is_open


def test_without_a_meter_time_is_real_and_joules_are_not_known() -> None:
    meter = build(Energy(meter="none"), attempt=0)
    before = time.perf_counter()
    window = window_of(meter)
    assert 0 < window.seconds <= time.perf_counter() - before
    assert window.total_joules is None
    phase = by_phase([window])[window.phase]
    assert phase.joules is None
    assert phase.energy_class is EnergyClass.NONE
    assert meter.method().classes == {}


def test_a_sum_with_an_unmetered_part_is_not_known() -> None:
    metered, unmetered = fake(), build(Energy(meter="none"), attempt=1)
    windows = [*windows_of(metered, ["train"]), *windows_of(unmetered, ["train"])]
    phase = by_phase(windows)["train"]
    assert phase.joules is None
    assert phase.energy_class is EnergyClass.MIXED
    assert total(windows).joules is None


def test_a_phase_with_an_invalid_window_is_invalid() -> None:
    window = windows_of(fake(), ["train"])[0]
    bad = replace(window, valid=False, fault="zero")
    assert by_phase([window])["train"].valid
    assert not by_phase([window, bad])["train"].valid
    assert (by_phase([]), total([]).joules) == ({}, None)


@pytest.mark.parametrize("kind", list(EnergyClass))
def test_a_sum_of_one_class_has_that_class(kind: EnergyClass) -> None:
    assert class_of([kind, kind]) is kind


def test_windows_and_methods_survive_json() -> None:
    for window in windows_of(fake(), ["train", "watch"]):
        assert load(Window, json.loads(json.dumps(dump(window)))) == window
    assert dump(fake().method())["classes"] == {
        "cpu": "simulated",
        "ram": "simulated",
    }


@pytest.mark.parametrize(
    ("fault", "words", "joules"),
    [
        ("zero", "no energy at all over 1 s", {"cpu": 0.0, "ram": 0.0}),
        ("none", "energy of cpu, ram is missing", {}),
        ("jump", "the tracker timed 3.000 s where 1.000 to 1.000 s went by", {"cpu": 30.0, "ram": 15.0}),
        (
            "wrap",
            "over 1 s the cpu counter, which turns over every 8 J, may have lost a turn; use shorter windows",
            {"cpu": 2.5, "ram": 5.0},
        ),
    ],
)
def test_a_scripted_fault_befalls_the_window_it_was_scripted_for(
    fault: str, words: str, joules: dict[str, float]
) -> None:
    windows = fakes(4, fake_fault=fault, fake_fault_window=2)
    sound = fakes(4)
    assert [window.valid for window in windows] == [True, True, False, True]
    assert windows[2].fault == words
    assert windows[2].joules == pytest.approx(joules)
    assert [windows[at] for at in (0, 1, 3)] == [sound[at] for at in (0, 1, 3)]


@given(
    fault=st.sampled_from(["zero", "none", "jump", "wrap"]),
    watts=st.floats(0.01, 1e4),
    seconds=st.floats(1e-3, 1e4),
    pue=st.floats(1.0, 3.0),
    noise=st.floats(0.0, 0.3),
)
def test_a_fault_is_found_whatever_the_watts_and_the_clock(
    fault: str, watts: float, seconds: float, pue: float, noise: float
) -> None:
    settings = {
        "fake_cpu_watts": watts,
        "fake_gpu_watts": watts,
        "fake_window_seconds": seconds,
        "pue": pue,
        "fake_noise_share": noise,
    }
    sound, at_fault = fakes(2, **settings, fake_fault=fault, fake_fault_window=1)
    assert sound.fault == ""
    assert not at_fault.valid
    assert at_fault.seconds == seconds


def test_a_gpu_is_there_when_it_has_watts() -> None:
    (window,) = fakes(1, fake_gpu_watts=250.0, fake_window_seconds=2.0)
    assert window.joules == {"cpu": 20.0, "gpu": 500.0, "ram": 10.0}
    assert window.classes["gpu"] is EnergyClass.SIMULATED
    assert "gpu" not in fakes(1)[0].joules


def test_noise_has_the_deviation_that_was_asked_and_is_the_same_for_the_same_seed() -> None:
    joules = [window.total_joules or 0.0 for window in fakes(2000, fake_noise_share=0.1)]
    assert fmean(joules) == pytest.approx(15.0, rel=0.01)
    assert stdev(joules) / 15.0 == pytest.approx(0.1, rel=0.06)
    again = [window.total_joules for window in fakes(3, fake_noise_share=0.1)]
    assert again == joules[:3]
    (window,) = fakes(1, fake_noise_share=0.2)
    assert window.joules["cpu"] / window.joules["ram"] == pytest.approx(2.0), "all parts share it"
    for other in ({"fake_seed": 1}, {"attempt": 1}):
        assert fakes(1, fake_noise_share=0.1, **other)[0].total_joules != joules[0]


def test_the_method_says_what_was_scripted_and_nothing_more() -> None:
    steady = build(Energy(meter="fake"), attempt=0).method().details
    assert set(steady) == {"cpu_watts", "ram_watts", "window_seconds", "pue"}
    settings = Energy(meter="fake", fake_noise_share=0.1, fake_fault="zero", fake_fault_window=3)
    details = build(settings, attempt=0).method().details
    assert (details["noise_share"], details["fault"], details["fault_window"]) == ("0.1", "zero", "3")


LinuxTimes = namedtuple(
    "LinuxTimes", "user nice system idle iowait irq softirq steal guest guest_nice", defaults=[0.0] * 10
)


def test_busy_is_all_but_idle_iowait_steal_and_what_is_counted_twice() -> None:
    times = LinuxTimes(
        100.0, 20.0, 30.0, 1e6, 1e5, irq=4.0, softirq=5.0, steal=7.0, guest=60.0, guest_nice=6.0
    )
    assert split_times(times) == MachineTimes(busy_seconds=159.0, steal_seconds=7.0)


def test_where_nothing_is_stated_of_steal_it_is_not_known() -> None:
    mac = namedtuple("mac", "user nice system idle")
    now, before = split_times(mac(9.0, 1.0, 2.0, 50.0)), split_times(mac(4.0, 1.0, 1.5, 40.0))
    assert now.since(before) == MachineTimes(busy_seconds=5.5, steal_seconds=None)


def test_a_clock_set_back_by_a_tick_is_zero_and_no_negative_time() -> None:
    now, before = split_times(LinuxTimes(user=9.99, steal=1.0)), split_times(LinuxTimes(user=10.0, steal=1.5))
    assert now.since(before) == MachineTimes(busy_seconds=0.0, steal_seconds=0.0)


def test_times_that_may_not_be_read_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Any:
        raise PermissionError("/proc/stat")

    monkeypatch.setattr(psutil, "cpu_times", refuse)
    nothing = MachineTimes(busy_seconds=None, steal_seconds=None)
    assert machine_times() == nothing
    monkeypatch.undo()
    assert machine_times().since(nothing) == nothing


@pytest.mark.parametrize("kind", ["codecarbon", "none"])
def test_a_window_holds_everybodys_processor_time_and_our_own_in_it(kind: str) -> None:
    meter = build(Energy(meter=kind), attempt=0)  # type: ignore[arg-type]
    code = "import time\nend = time.process_time() + 0.15\nwhile time.process_time() < end: pass"
    with meter.window("train") as span:
        other = subprocess.Popen([sys.executable, "-c", code])
        end = time.process_time() + 0.15
        while time.process_time() < end:
            pass
        assert other.wait() == 0
    window = span.window
    meter.shut()
    assert window.machine_cpu_seconds is not None
    cpus = os.cpu_count() or 1
    assert meter.method().details["logical_cpus"] == str(cpus)
    assert window.cpu_seconds > 0.3 - 0.05 * cpus, "what a child computes is the run's own"
    # Ticks of 10 ms a processor, kind by kind; and a process's own clock may go on while time is stolen.
    taken = window.machine_cpu_seconds + (window.steal_seconds or 0.0)
    assert taken > window.cpu_seconds - 0.05 * cpus
    assert window.machine_cpu_seconds < cpus * (window.seconds + 0.1)
    assert window.steal_seconds is None or 0.0 <= window.steal_seconds <= cpus * (window.seconds + 0.1)


def test_what_is_not_asked_is_not_known() -> None:
    boards = NvmlBoards()
    assert (boards.joules(), boards.celsius(), boards.throttled()) == (None, None, None)
    window = window_of(build(Energy(meter="none"), attempt=0))
    assert (window.gpu_celsius, window.throttled) == (None, None)
    (window,) = fakes(1)
    assert (window.machine_cpu_seconds, window.steal_seconds) == (None, None)


TRAIN = Window(
    phase="train",
    index=7,
    attempt=3,
    seconds=12.5,
    cpu_seconds=11.0,
    joules={"cpu": 80.0, "gpu": 3000.5},
    classes={"cpu": EnergyClass.MODELLED, "gpu": EnergyClass.MEASURED},
    started="2026-01-02T03:04:05.678Z",
    machine_cpu_seconds=13.0,
    steal_seconds=0.25,
    gpu_celsius=71.0,
    throttled=False,
)
BROKEN = replace(TRAIN, seconds=1.5, joules={}, classes={}, valid=False, fault="energy of cpu is missing")
SAMPLED = replace(TRAIN, phase="evaluate", classes=dict.fromkeys(TRAIN.joules, EnergyClass.MODELLED))


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "energy.jsonl"
    Journal(path).append_all((TRAIN, SAMPLED, BROKEN))
    return path


def replay(path: Path, attempt: int = 0) -> AbstractMeter:
    return build(Energy(meter="replay", replay=str(path)), attempt=attempt)


def test_each_phase_takes_its_own_windows_in_the_order_recorded(journal: Path) -> None:
    meter = replay(journal, attempt=1)
    windows = [window_of(meter, phase) for phase in ("train", "train", "evaluate")]
    assert windows == [
        replace(TRAIN, index=0, attempt=1),
        replace(BROKEN, index=1, attempt=1),
        replace(SAMPLED, index=0, attempt=1),
    ]


def test_the_method_names_the_file_and_the_classes_found_in_it(journal: Path) -> None:
    method = replay(journal).method()
    assert (method.meter, method.scope) == ("replay", "recorded")
    assert method.classes == {"cpu": EnergyClass.MODELLED, "gpu": EnergyClass.MIXED}
    assert method.details == {
        "file": "energy.jsonl",
        "sha256": sha256(journal.read_bytes()).hexdigest(),
        "windows": "3",
    }


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        (
            "evaluate",
            r"records 1 windows of 'evaluate', and this run opens one more: replay the journal of a run",
        ),
        ("trian", r"records no window of 'trian' \(did you mean 'train'\?\)"),
        ("prune", r"records no window of 'prune' \(recorded: evaluate, train\)"),
    ],
)
def test_a_phase_that_is_used_up_or_was_never_recorded_is_reported(
    journal: Path, phase: str, words: str
) -> None:
    meter = replay(journal)
    window_of(meter, "evaluate")
    with pytest.raises(MeterError, match=rf"^energy.replay: {re.escape(str(journal))} {words}"):
        meter.open(phase)
    assert not meter.is_open
    assert window_of(meter, "train").seconds == 12.5


def test_a_line_that_a_kill_truncated_is_left_out(journal: Path) -> None:
    with journal.open("ab") as file:
        file.write(b'{"phase": "tra')
    assert replay(journal).method().details["windows"] == "3"


def changed(**values: Any) -> str:
    return json.dumps({**dump(TRAIN), **values})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"phase": "train"}', "line 2 is no window"),
        (changed(seconds="long"), "line 2 is no window .*seconds must be a valid number"),
        (
            changed(joules={"cpu": None, "gpu": 1.0}),
            "line 2 is no window .*joules.cpu must be a valid number",
        ),
        (changed(joules={"cpu": 1.0}), "line 2 is no window .*joules and classes are of different parts"),
        (changed(classes={"cpu": "guessed", "gpu": "measured"}), "line 2 is no window .*'guessed'"),
        (changed(phase=""), "line 2 is no window .*phase must have at least 1 character"),
        (changed(joules=[1.0]), "line 2 is no window"),
        (changed(watts=3.0), "line 2 is no window .*watts"),
    ],
)
def test_a_line_that_is_no_window_is_refused_by_number(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "energy.jsonl"
    path.write_text(f"{json.dumps(dump(TRAIN))}\n{line}\n")
    with pytest.raises(MeterError, match=words):
        replay(path)


def test_a_file_that_is_damaged_absent_empty_or_a_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "energy.jsonl"
    with pytest.raises(MeterError, match="is not there"):
        replay(path)
    with pytest.raises(MeterError, match=f"is a folder; {path} may be meant"):
        replay(tmp_path)
    path.write_text("")
    with pytest.raises(MeterError, match="holds no window"):
        replay(path)
    path.write_text(f"{json.dumps(dump(TRAIN))}\n{{]\n")
    with pytest.raises(RunFolderError, match="line 2 of 2 is not a JSON object"):
        replay(path)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("energy.fake_fault=jmp", r"energy.fake_fault: must be .*did you mean 'jump'.*found 'jmp'"),
        ("energy.fake_noise_share=1.5", "energy.fake_noise_share: must be less than or equal to 1"),
        ("energy.fake_fault_window=-1", "energy.fake_fault_window: must be greater than or equal to 0"),
        ("energy.fake_gpu_wats=3", r"energy.fake_gpu_wats: unknown key \(did you mean 'fake_gpu_watts'\?\)"),
        ("energy.meter=replay", "energy.replay: is needed by meter 'replay': the energy.jsonl of a run"),
        ("energy.replay=a.jsonl", r"energy.replay: is read by meter 'replay' only \(here 'codecarbon'\)"),
        ("energy.meter=reply", "energy.meter: must be .*did you mean 'replay'"),
    ],
)
def test_a_recipe_that_cannot_be_metered_is_refused(override: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe.parse(LEAST, "x.toml", [override])
    with pytest.raises(MeterError, match=r"needs the energy\.jsonl of a run"):
        build(Energy(meter="replay"), attempt=0)


@pytest.mark.parametrize("joules", [-3.0, float("nan"), 1e30])
def test_energy_that_cannot_be_is_missing_and_never_written_down(joules: float) -> None:
    class Broken(FakeMeter):
        def _end(self) -> Count:
            classes = {"cpu": EnergyClass.SIMULATED, "ram": EnergyClass.SIMULATED}
            return Count(seconds=1.0, cpu_seconds=-0.01, joules={"cpu": joules, "ram": 2.0}, classes=classes)

    window = window_of(Broken(Energy(meter="fake"), attempt=0))
    assert (window.joules, window.cpu_seconds) == ({"ram": 2.0}, 0.0)
    assert (window.valid, window.fault) == (False, "energy of cpu is missing")
    assert load(Window, dump(window)) == window


def test_joules_without_a_class_are_refused() -> None:
    raw = dump(window_of(fake()))
    with pytest.raises(ValueError, match="joules of 'gpu' have no class"):
        load(Window, {**raw, "joules": {"gpu": 1.0}})
