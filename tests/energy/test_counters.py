"""Codecarbon itself on machines with counters: what is counted, and what is refused when they misbehave."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.energy.pretended import RAPL_RANGE_MICROJOULES, rapl_package, run_pretended


def test_an_nvml_counter_is_read_to_the_joule_and_held_against_itself(tmp_path: Path) -> None:
    counted, hot, apart, sampled, method, nvml, parts, pue = run_pretended(
        tmp_path,
        """
        import json, pynvml
        from dataclasses import asdict
        from tpsprune.energy import build
        from tpsprune.energy.devices import find_nvml
        from tpsprune.energy.parts import parts_of
        from tpsprune.recipe.train import Energy
        meter = build(Energy(), attempt=0)
        windows, nvml = [], find_nvml()
        with meter.window("train") as span:
            pynvml.MILLIJOULES[0] += 123_000
        windows.append(span.window.to_json())
        pynvml.OLD_DRIVER.append(True)
        with meter.window("train") as span:
            pynvml.MILLIJOULES[0] += 123_000
            pynvml.CELSIUS[0], pynvml.REASONS[0] = 93, 0x40
        windows.append(span.window.to_json())
        pynvml.CELSIUS[0], pynvml.REASONS[0] = 60, 0x04
        pynvml.EACH_READING[0] = 1_000_000
        with meter.window("train") as span:
            pynvml.MILLIJOULES[0] += 123_000
        windows.append(span.window.to_json())
        pynvml.EACH_READING[0] = 0
        parts = [asdict(part) for part in parts_of(meter.method(), nvml.limit_watts, has_gpu=True)]
        doubled = build(Energy(pue=2.0), attempt=0)
        with doubled.window("train") as span:
            pynvml.MILLIJOULES[0] += 100_000_000
        pue = span.window.to_json()
        pynvml.BROKEN.append(True)
        with meter.window("train") as span:
            pass
        windows.append(span.window.to_json())
        print(json.dumps([*windows, meter.method().to_json(), asdict(nvml), parts, pue]))
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


def test_a_rapl_counter_is_measured_and_what_it_does_wrong_is_told(tmp_path: Path) -> None:
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
        meter = CodecarbonMeter()
        def count(before, after, seconds=0.05, longer=0):
            (package / "energy_uj").write_text(f"{{before}}\\n")
            with meter.window("train") as span:
                time.sleep(seconds)
                (package / "energy_uj").write_text(f"{{after}}\\n")
                meter._outer_at -= longer
            return span.window.to_json()
        top = {RAPL_RANGE_MICROJOULES}
        windows = [
            count(1_000_000, 43_000_000),
            count(top - 1_000_000, 500_000),
            count(43_000_000, 500_000),
            count(500_000, 600_000, longer=600),
            count(600_000, "gone"),
        ]
        print(json.dumps([*windows, meter.method().to_json()]))
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
