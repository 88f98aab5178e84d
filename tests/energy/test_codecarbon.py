"""Codecarbon itself: on this machine as it is, and on one with counters put together for the purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tpsprune.energy import AbstractMeter, build
from tpsprune.energy.codecarbon_meter import CodecarbonMeter
from tpsprune.errors import MeterError
from tpsprune.recipe.train import Energy
from tpsprune.records import EnergyClass

ROOT = Path(__file__).parents[2]
FILES = Path(__file__).parent / "fake_modules"

RAPL_RANGE_MICROJOULES = 262_143_328_850


def run_pretended(tmp_path: Path, body: str) -> Any:
    """Run a program on the pretended machine and return the JSON that it prints.

    In a process of its own: codecarbon looks for hardware once, when it is imported.
    """
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nexit 0\n")
    smi.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": f"{FILES}:{ROOT}",
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def rapl_package(root: Path, microjoules: int = 1_000_000) -> Path:
    """Lay out one RAPL package as Linux shows it, below ``root``."""
    package = root / "intel-rapl" / "intel-rapl:0"
    package.mkdir(parents=True)
    (package / "name").write_text("package-0\n")
    (package / "energy_uj").write_text(f"{microjoules}\n")
    (package / "max_energy_range_uj").write_text(f"{RAPL_RANGE_MICROJOULES}\n")
    return package


@pytest.fixture(scope="module")
def meter() -> Iterator[AbstractMeter]:
    meter = build(Energy(), attempt=2)
    yield meter
    assert not meter.is_open


def spin(seconds: float) -> None:
    """Work for so many seconds of processor time, whatever else the machine does."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_ram_joules_are_ram_watts_times_seconds(meter: AbstractMeter) -> None:
    if meter.method().classes["ram"] is not EnergyClass.CONSTANT:
        pytest.skip("RAM is measured on this machine")
    with meter.window("train") as span:
        spin(0.3)
    window = span.window
    assert window.valid, window.fault
    watts = float(meter.method().details["ram_watts"])
    # Starting and stopping the tracker is charged to the window too: a few ms, more on a busy machine.
    assert window.joules["ram"] / watts == pytest.approx(window.seconds, rel=0.02, abs=0.05)
    assert 0.3 <= window.cpu_seconds <= window.seconds + 0.05
    assert (window.attempt, window.index) == (2, 0)


def test_every_figure_says_how_it_was_obtained(meter: AbstractMeter) -> None:
    method = meter.method()
    with meter.window("evaluate") as span:
        spin(0.02)
    assert span.window.classes == method.classes
    assert set(span.window.joules) == set(method.classes)
    assert method.details["codecarbon"].startswith("3.")
    assert {"disk", "embodied"} <= set(method.excluded)
    if method.details["cpu_mode"] == "cpu_load":
        assert method.classes["cpu"] is EnergyClass.MODELLED
        assert float(method.details["cpu_rated_watts"]) > 0


def test_a_window_left_by_an_exception_is_closed(meter: AbstractMeter) -> None:
    span = meter.window("train")

    def fail() -> None:
        with span:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert span.window.valid, span.window.fault
    with meter.window("train") as after:
        pass
    assert after.window.index == span.window.index + 1


def test_pue_multiplies_what_is_reported(meter: AbstractMeter) -> None:
    doubled = build(Energy(pue=2.0), attempt=0)
    with meter.window("plain") as plain:
        spin(0.1)
    with doubled.window("doubled") as twice:
        spin(0.1)
    assert twice.window.valid, twice.window.fault
    ram = [span.window.joules["ram"] / span.window.seconds for span in (plain, twice)]
    assert ram[1] / ram[0] == pytest.approx(2.0, rel=0.3)


def test_nothing_is_written_and_nothing_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with build(Energy(), attempt=0).window("train"):
        pass
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("variable", ["CODECARBON_PUE", "codecarbon_gpu_ids"])
def test_settings_in_the_environment_are_refused(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "3")
    with pytest.raises(MeterError, match=rf"`unset {variable}`, or set energy.meter = 'none'"):
        build(Energy(), attempt=0)


@pytest.mark.parametrize("where", ["home", "here"])
def test_settings_in_a_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    file = tmp_path / where / ".codecarbon.config"
    file.write_text("[codecarbon]\npue = 3\n")
    with pytest.raises(MeterError, match=f"move {file} away"):
        build(Energy(), attempt=0)
    file.unlink()
    assert build(Energy(), attempt=0).method().details["pue"] == "1"


def test_settings_outside_do_not_matter_to_the_other_meters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODECARBON_PUE", "3")
    assert build(Energy(meter="fake"), attempt=0).method().details["pue"] == "1"


def test_a_window_that_the_tracker_loses_is_an_error() -> None:
    meter = CodecarbonMeter()
    meter.open("train")
    meter._tracker._tasks.clear()
    with pytest.raises(MeterError, match=r"codecarbon lost a window .* energy.meter = 'none'"):
        meter.close()
    assert not meter.is_open
    meter._tracker._another_instance_already_running = True
    with pytest.raises(MeterError, match="codecarbon did not start a window"):
        meter.open("train")
    half_built = CodecarbonMeter()
    del half_built._tracker._tasks
    with pytest.raises(MeterError, match=r"codecarbon cannot start a window \(AttributeError"):
        half_built.open("train")


def test_a_time_base_that_drifted_and_energy_that_is_missing_make_a_window_invalid() -> None:
    meter = CodecarbonMeter()
    with meter.window("train") as span:
        meter._tracker._last_measured_time -= 0.5
    assert not span.window.valid
    assert "RAM was charged for 0.5" in span.window.fault
    stop = meter._tracker.stop_task

    def stop_without_cpu() -> Any:
        task = stop()
        task.cpu_energy = None
        return task

    meter._tracker.stop_task = stop_without_cpu
    with meter.window("train") as span:
        pass
    assert not span.window.valid
    assert span.window.total_joules is None
    assert "energy of cpu, ram is missing" in span.window.fault


def test_an_nvml_counter_is_read_to_the_joule_and_held_against_itself(tmp_path: Path) -> None:
    counted, hot, apart, sampled, method, nvml, parts, pue = run_pretended(
        tmp_path,
        """
        import json, pynvml
        from dataclasses import asdict
        from tpsprune.energy import build
        from tpsprune.energy.counters import find_nvml
        from tpsprune.energy.doctor import parts_of
        from tpsprune.recipe.train import Energy
        from tpsprune.records import dump
        meter = build(Energy(), attempt=0)
        windows, nvml = [], find_nvml()
        with meter.window("train") as span:
            pynvml.MILLIJOULES[0] += 123_000
        windows.append(dump(span.window))
        pynvml.OLD_DRIVER.append(True)
        with meter.window("train") as span:
            pynvml.MILLIJOULES[0] += 123_000
            pynvml.CELSIUS[0], pynvml.REASONS[0] = 93, 0x40
        windows.append(dump(span.window))
        pynvml.CELSIUS[0], pynvml.REASONS[0] = 60, 0x04
        pynvml.EACH_READING[0] = 1_000_000
        with meter.window("train") as span:
            pynvml.MILLIJOULES[0] += 123_000
        windows.append(dump(span.window))
        pynvml.EACH_READING[0] = 0
        parts = [asdict(part) for part in parts_of(meter.method(), nvml.limit_watts, has_gpu=True)]
        doubled = build(Energy(pue=2.0), attempt=0)
        with doubled.window("train") as span:
            pynvml.MILLIJOULES[0] += 100_000_000
        pue = dump(span.window)
        pynvml.BROKEN.append(True)
        with meter.window("train") as span:
            pass
        windows.append(dump(span.window))
        print(json.dumps([*windows, dump(meter.method()), asdict(nvml), parts, pue]))
        """,
    )
    assert counted["valid"], counted["fault"]
    assert counted["joules"]["gpu"] == pytest.approx(123.0, rel=1e-5)
    assert counted["classes"]["gpu"] == "measured"
    assert (counted["gpu_celsius"], counted["throttled"]) == (61.0, False)
    assert (hot["gpu_celsius"], hot["throttled"]) == (93.0, True)
    # A power cap (0x04) slows the clocks too, but is what the board is set to.
    assert apart["throttled"] is False
    # The tracker looks before us and after us, and the counter moves 1 kJ whenever somebody looks.
    assert apart["fault"] == "the gpu counter moved by 1123 J where the tracker charged 3123 J"
    assert sampled["classes"]["gpu"] == "modelled"
    assert sampled["valid"], sampled["fault"]
    assert method["details"]["gpu_mode"] == "counter"
    assert method["details"]["gpu_model"] == "Pretended H1"
    assert "gpu" not in method["excluded"]
    assert pue["valid"], pue["fault"]
    assert pue["joules"]["gpu"] == pytest.approx(200_000.0, rel=1e-5)
    assert (nvml["names"], nvml["driver"], nvml["limit_watts"]) == (["Pretended H1"], "575.57", 700.0)
    (gpu,) = (part for part in parts if part["part"] == "gpu")
    assert (gpu["by"], gpu["energy_class"], gpu["watts"]) == ("NVML energy counter", "measured", None)


def test_a_rapl_counter_is_measured_and_what_it_does_wrong_is_reported(tmp_path: Path) -> None:
    package = rapl_package(tmp_path / "powercap")
    plain, turned, set_back, too_long, lost, method = run_pretended(
        tmp_path,
        f"""
        import json, pathlib, time
        from codecarbon.core import cpu
        from codecarbon.external.hardware import CPU
        package = pathlib.Path({str(package)!r})
        build_cpu = CPU.__init__
        def with_own_tree(self, *args, **kwargs):
            build_cpu(self, *args, **{{**kwargs, "rapl_dir": str(package.parent)}})
        CPU.__init__ = with_own_tree
        cpu.is_rapl_available = lambda: True
        from tpsprune.energy.codecarbon_meter import CodecarbonMeter
        from tpsprune.records import dump
        meter = CodecarbonMeter()
        def count(before, after, seconds=0.05, longer=0):
            (package / "energy_uj").write_text(f"{{before}}\\n")
            with meter.window("train") as span:
                time.sleep(seconds)
                (package / "energy_uj").write_text(f"{{after}}\\n")
                meter._outer_at -= longer
            return dump(span.window)
        top = {RAPL_RANGE_MICROJOULES}
        windows = [
            count(1_000_000, 43_000_000),
            count(top - 1_000_000, 500_000),
            count(43_000_000, 500_000),
            count(500_000, 600_000, longer=600),
            count(600_000, "gone"),
        ]
        print(json.dumps([*windows, dump(meter.method())]))
        """,
    )
    assert plain["valid"], plain["fault"]
    assert plain["joules"]["cpu"] == pytest.approx(42.0, rel=1e-5)
    assert plain["classes"]["cpu"] == "measured"
    assert method["details"]["cpu_mode"] == "intel_rapl"
    assert turned["valid"], turned["fault"]
    assert turned["joules"]["cpu"] == pytest.approx(1.5, rel=1e-3)
    assert "the cpu counter moved by 262101 J" in set_back["fault"]
    assert "set back or jumped" in set_back["fault"]
    assert "may have lost a turn" in too_long["fault"]
    assert "could not be read" in lost["fault"]
