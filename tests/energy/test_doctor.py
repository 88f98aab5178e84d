"""What a machine can measure: the grade of its parts, and what is said of what is there but not measured."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.energy.test_codecarbon import rapl_package
from tpsprune.energy.codecarbon_meter import OutsideSettings, find_outside_settings
from tpsprune.energy.counters import NvmlFound, RaplDomain, find_rapl
from tpsprune.energy.doctor import (
    cpu_remedy,
    gpu_remedies,
    grade_of,
    parts_of,
    settings_remedy,
    table_remedy,
    wall_remedy,
)
from tpsprune.energy.machine import cpu_model, in_container, is_virtualised, pci_gpus
from tpsprune.records import EnergyClass, EnergyMethod, MachineFacts, MeteredPart

MEASURED, MODELLED = EnergyClass.MEASURED, EnergyClass.MODELLED
CONSTANT, NONE = EnergyClass.CONSTANT, EnergyClass.NONE


def part(name: str, energy_class: EnergyClass, watts: float | None = None) -> MeteredPart:
    return MeteredPart(part=name, by="", energy_class=energy_class, watts=watts)


def by_load(watts: float) -> MeteredPart:
    return part("cpu", MODELLED, watts)


CPU, GPU, RAM = part("cpu", MEASURED), part("gpu", MEASURED), part("ram", CONSTANT, 20.0)


@pytest.mark.parametrize(
    ("parts", "letter", "meaning"),
    [
        ([CPU], "B", "hardware counters for cpu"),
        ([CPU, RAM], "C", "B where the 20 W assumed for ram are below a tenth"),
        ([CPU, GPU, RAM], "C", "hardware counters for cpu and gpu; B"),
        ([by_load(360.0), GPU, RAM], "C", "a hardware counter for gpu, a model for the rest"),
        ([CPU, part("gpu", NONE), RAM], "C", "a hardware counter for cpu, a model for the rest; gpu is not"),
        ([by_load(65.0), RAM], "D", "a load model: 20 of 85 W at full load are assumed constant"),
        ([by_load(8.0), part("gpu", MODELLED, 300.0), RAM], "D", "20 of 328 W"),
        ([by_load(8.0), RAM], "E", "mostly constants times time: 20 of 28 W"),
        ([part("cpu", CONSTANT, 65.0), RAM], "E", "mostly constants times time: 85 of 85 W"),
        ([by_load(8.0), part("gpu", MODELLED), RAM], None, "not all known"),
        ([], None, "nothing is metered here"),
    ],
)
def test_a_machine_has_the_grade_of_its_dominant_parts(
    parts: list[MeteredPart], letter: str | None, meaning: str
) -> None:
    found, words = grade_of(parts)
    assert found == letter
    assert meaning in words


@given(cpu=st.floats(1.0, 1e3), ram=st.floats(1.0, 1e3))
def test_without_counters_it_is_e_where_constants_are_more_than_half(cpu: float, ram: float) -> None:
    letter, _ = grade_of([by_load(cpu), part("ram", CONSTANT, ram)])
    assert letter == ("E" if ram > (cpu + ram) / 2 else "D")


def method(classes: dict[str, EnergyClass], **details: str) -> EnergyMethod:
    return EnergyMethod(meter="codecarbon", scope="machine", classes=classes, details=details)


def test_each_part_says_who_meters_it() -> None:
    found = parts_of(
        method(
            {"ram": CONSTANT, "cpu": MODELLED, "gpu": MODELLED},
            cpu_mode="cpu_load",
            cpu_rated_watts="8",
            ram_mode="constant",
            ram_watts="20",
            gpu_mode="power samples",
        ),
        gpu_watts=300.0,
        has_gpu=True,
    )
    assert [(each.part, each.by, each.watts) for each in found] == [
        ("cpu", "load model, 8 W at full load", 8.0),
        ("gpu", "power samples, one a second", 300.0),
        ("ram", "constant 20 W, from its size", 20.0),
    ]


def test_a_counter_assumes_no_watts_and_a_gpu_that_nobody_meters_is_named() -> None:
    details = {"cpu_mode": "intel_rapl", "ram_watts": "20"}
    found = parts_of(method({"cpu": MEASURED, "ram": CONSTANT}, **details), has_gpu=True)
    assert [(each.part, each.by, each.energy_class) for each in found] == [
        ("cpu", "RAPL counter", MEASURED),
        ("gpu", "nothing", NONE),
        ("ram", "constant 20 W, from its size", CONSTANT),
    ]
    assert found[0].watts is None
    (odd,) = parts_of(method({"cpu": MODELLED}, cpu_mode="a mode of tomorrow"))
    assert (odd.by, odd.watts) == ("a mode of tomorrow", None)


LOAD_MODEL = MeteredPart(part="cpu", by="load model", energy_class=EnergyClass.MODELLED, watts=8.0)
COUNTED = MeteredPart(part="cpu", by="RAPL counter", energy_class=EnergyClass.MEASURED)
NO_GPU = MeteredPart(part="gpu", by="nothing", energy_class=EnergyClass.NONE)
GRANT = "sudo chmod -R a+r /sys/class/powercap/intel-rapl*"
WALL_METER = "tpsprune report DIR --wall-meter FILE.csv"


def machine(**facts: Any) -> MachineFacts:
    known = {"cpu_model": "AMD EPYC", "logical_cpus": 2, "ram_bytes": 2**34, "virtualised": False}
    return MachineFacts(**{**known, "container": None, "gpus": (), "gpu_driver": None, **facts})


def refusing(number: int) -> Callable[[Path], str]:
    def read(path: Path) -> str:
        raise OSError(number, {errno.EACCES: "Permission denied", errno.EIO: "Input/output error"}[number])

    return read


def test_counters_that_can_be_read_are_found_once_though_linux_shows_them_twice(tmp_path: Path) -> None:
    package = rapl_package(tmp_path)
    core = package / "intel-rapl:0:0"
    core.mkdir()
    (core / "energy_uj").write_text("7\n")
    (tmp_path / "intel-rapl:0").symlink_to(package)
    (tmp_path / "intel-rapl:0:0").symlink_to(core)
    found = find_rapl(tmp_path)
    assert [(domain.name, domain.fault) for domain in found] == [("package-0", ""), ("intel-rapl:0:0", "")]
    assert cpu_remedy(COUNTED, machine(), found) is None
    assert find_rapl(tmp_path / "powercap") == find_rapl(core) == ()


def test_counters_that_may_not_be_read_come_with_the_lines_that_let_them(tmp_path: Path) -> None:
    rapl_package(tmp_path)
    found = find_rapl(tmp_path, refusing(errno.EACCES))
    assert [(domain.fault, domain.denied) for domain in found] == [("Permission denied", True)]
    for part in (LOAD_MODEL, None):
        remedy = cpu_remedy(part, machine(), found)
        assert remedy is not None
        assert remedy.found == "RAPL counters are here but may not be read (package-0: Permission denied)."
        assert "/etc/udev/rules.d/70-rapl.rules" in remedy.do
        assert remedy.lines[0] == GRANT
        assert remedy.lines[1] == (
            'SUBSYSTEM=="powercap", KERNEL=="*:*", RUN+="/bin/chmod a+r /sys%p/energy_uj"'
        )


def test_counters_that_fail_are_reported_by_their_fault(tmp_path: Path) -> None:
    package = rapl_package(tmp_path)
    for spoil, words in (
        (lambda: (package / "energy_uj").write_text("gone"), "package-0: holds no number"),
        (lambda: ((package / "energy_uj").unlink(), (package / "energy_uj").mkdir()), "Is a directory"),
    ):
        spoil()
        remedy = cpu_remedy(LOAD_MODEL, machine(), find_rapl(tmp_path))
        assert remedy is not None
        assert words in remedy.found
        assert f"Check {package / 'energy_uj'}" in remedy.do
        assert GRANT not in remedy.do
    (fault,) = find_rapl(tmp_path, refusing(errno.EIO))
    assert (fault.fault, fault.denied) == ("Input/output error", False)


@pytest.mark.parametrize(
    ("facts", "found", "do"),
    [
        ({"virtualised": True}, "this is a virtual machine, and its hypervisor shows none", WALL_METER),
        ({"virtualised": True, "container": True}, "this is a virtual machine", WALL_METER),
        ({"container": True}, "containers hide them", f"on the host, {GRANT}"),
        ({"virtualised": None}, "whether a hypervisor hides it is not known", "modprobe intel_rapl_msr"),
        ({}, "the kernel shows none", "sudo modprobe intel_rapl_msr"),
    ],
)
def test_where_there_is_no_counter_the_reason_is_reported_as_far_as_known(
    facts: dict[str, Any], found: str, do: str
) -> None:
    remedy = cpu_remedy(LOAD_MODEL, machine(**facts), ())
    assert remedy is not None
    assert found in remedy.found
    assert do in remedy.do


def test_what_is_not_known_is_not_guessed() -> None:
    readable = (RaplDomain(name="package-0", path=Path("/x/energy_uj")),)
    remedy, other = (
        cpu_remedy(LOAD_MODEL, machine(), readable),
        cpu_remedy(LOAD_MODEL, machine(), (), is_linux=False),
    )
    assert remedy is not None
    assert other is not None
    assert "why is not known" in remedy.found
    assert "on Linux alone" in other.found
    assert cpu_remedy(None, machine(), readable) is None


PRESENT = NvmlFound(names=("H1",), driver="575")
SILENT = NvmlFound(fault="NVML Shared Library Not Found")
SAMPLED = MeteredPart(part="gpu", by="samples", energy_class=EnergyClass.MODELLED)
GPU_COUNTED = MeteredPart(part="gpu", by="counter", energy_class=EnergyClass.MEASURED)


@pytest.mark.parametrize(
    ("part", "nvml", "makers", "has_smi", "found", "do"),
    [
        (NO_GPU, SILENT, ["NVIDIA"], True, "does not respond (NVML Shared Library Not Found)", "--gpus all"),
        (None, SILENT, ["NVIDIA"], True, "does not respond", "libnvidia-ml"),
        (
            NO_GPU,
            NvmlFound(fault="no module", is_installed=False),
            ["NVIDIA"],
            True,
            "pynvml is not installed",
            "pip install nvidia-ml-py",
        ),
        (NO_GPU, PRESENT, None, False, "needs nvidia-smi, which is not on", "nvidia-utils-NNN"),
        (NO_GPU, PRESENT, ["NVIDIA"], True, "why is not known", "nvidia-smi -q -d POWER"),
        (SAMPLED, PRESENT, ["NVIDIA"], True, "have no energy counter", WALL_METER),
        (NO_GPU, SILENT, ["AMD"], False, "An AMD GPU is not metered", "amdsmi"),
    ],
)
def test_a_gpu_that_is_not_counted_comes_with_what_would_count_it(
    part: MeteredPart | None, nvml: NvmlFound, makers: list[str] | None, has_smi: bool, found: str, do: str
) -> None:
    (remedy,) = gpu_remedies(part, nvml, makers, has_smi=has_smi)
    assert found in remedy.found
    assert do in remedy.do


@pytest.mark.parametrize(
    ("part", "nvml", "makers"),
    [
        (GPU_COUNTED, PRESENT, ["NVIDIA"]),
        (None, SILENT, []),
        (None, SILENT, None),
        (None, PRESENT, ["NVIDIA"]),
        (None, SILENT, ["AMD"]),
    ],
)
def test_nothing_is_stated_of_gpus_that_are_counted_or_not_there_or_not_requested(
    part: MeteredPart | None, nvml: NvmlFound, makers: list[str] | None
) -> None:
    assert gpu_remedies(part, nvml, makers, has_smi=True) == []


def test_gpus_are_found_on_the_bus_by_kind_and_maker(tmp_path: Path) -> None:
    for slot, kind, vendor in (
        ("0", "0x030200", "0x10de"),
        ("1", "0x030000", "0x1002"),
        ("2", "0x030000", "0x1234"),
        ("3", "0x040300", "0x10de"),
    ):
        (tmp_path / slot).mkdir()
        (tmp_path / slot / "class").write_text(f"{kind}\n")
        (tmp_path / slot / "vendor").write_text(f"{vendor}\n")
    (tmp_path / "4").mkdir()
    assert pci_gpus(tmp_path) == ("NVIDIA", "AMD")
    assert pci_gpus(tmp_path / "nowhere") is None


def test_a_processor_that_says_nothing_is_unknown() -> None:
    arm = "processor\t: 0\nBogoMIPS\t: 50.0\nFeatures\t: fp asimd\n"
    assert (cpu_model(arm), is_virtualised(arm)) == (None, None)
    assert is_virtualised("flags\t\t: fpu hypervisors\n") is False


def test_a_container_is_known_by_its_mark(tmp_path: Path) -> None:
    assert in_container(tmp_path) is None
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".containerenv").touch()
    assert in_container(tmp_path) is True


def test_settings_from_outside_are_named_with_what_takes_them_away(tmp_path: Path) -> None:
    (tmp_path / ".codecarbon.config").touch()
    environ = ["PATH", "codecarbon_pue", "CODECARBON_GPU_IDS", "MY_CODECARBON_PUE"]
    found = find_outside_settings(environ, [tmp_path, tmp_path, tmp_path / "elsewhere"])
    assert found.variables == ("CODECARBON_GPU_IDS", "codecarbon_pue")
    remedy = settings_remedy(found)
    assert remedy is not None
    assert remedy.lines == (
        "unset CODECARBON_GPU_IDS",
        "unset codecarbon_pue",
        f"mv {tmp_path}/.codecarbon.config {tmp_path}/.codecarbon.config.away",
    )
    assert settings_remedy(OutsideSettings()) is None


def test_watts_assumed_for_a_processor_nobody_knows_are_named() -> None:
    remedy = table_remedy(machine(), 8.0, is_in_table=False)
    assert remedy is not None
    assert "'AMD EPYC' is not in codecarbon's table" in remedy.found
    assert "8 W are assumed at full load, 4 W a logical CPU" in remedy.found
    assert table_remedy(machine(), 360.0, is_in_table=True) is None
    assert table_remedy(machine(), None, is_in_table=None) is None


def test_assumed_watts_come_with_the_way_to_measure_them() -> None:
    ram = MeteredPart(part="ram", by="constant 20 W", energy_class=EnergyClass.CONSTANT, watts=20.0)
    remedy = wall_remedy([LOAD_MODEL, ram])
    assert remedy is not None
    assert (remedy.place, remedy.lines) == ("ram", (WALL_METER,))
    assert wall_remedy([LOAD_MODEL]) is None
