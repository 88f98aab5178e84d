"""What is there but not measured, found on trees laid out for the purpose, and what is said of it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.energy.pretended import rapl_package
from tpsprune.energy.devices import NvmlFound, cpu_model, in_container, is_virtualised, pci_gpus
from tpsprune.energy.powercap import RaplDomain, find_rapl
from tpsprune.energy.remedies import cpu_remedy, gpu_remedies, settings_remedy, table_remedy, wall_remedy
from tpsprune.energy.surroundings import OutsideSettings, outside_settings
from tpsprune.records import EnergyClass, MachineFacts, MeteredPart

MODELLED = MeteredPart(part="cpu", by="load model", energy_class=EnergyClass.MODELLED, watts=8.0)
COUNTED = MeteredPart(part="cpu", by="RAPL counter", energy_class=EnergyClass.MEASURED)
NO_GPU = MeteredPart(part="gpu", by="nothing", energy_class=EnergyClass.NONE)
GRANT = "sudo chmod -R a+r /sys/class/powercap/intel-rapl*"
WALL_METER = "tpsprune report DIR --wall-meter FILE.csv"


def machine(**facts: Any) -> MachineFacts:
    known = {
        "cpu_model": "AMD EPYC",
        "logical_cpus": 2,
        "ram_bytes": 2**34,
        "virtualised": False,
        "container": None,
        "gpus": (),
        "gpu_driver": None,
    }
    return MachineFacts(**{**known, **facts})


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


def test_counters_that_may_not_be_read_come_with_the_lines_that_let_them(tmp_path: Path) -> None:
    rapl_package(tmp_path)
    found = find_rapl(tmp_path, refusing(errno.EACCES))
    assert [(domain.fault, domain.denied) for domain in found] == [("Permission denied", True)]
    for part in (MODELLED, None):
        remedy = cpu_remedy(part, machine(), found)
        assert remedy is not None
        assert remedy.found == "RAPL counters are here but may not be read (package-0: Permission denied)."
        assert "/etc/udev/rules.d/70-rapl.rules" in remedy.do
        assert remedy.lines[0] == GRANT
        assert remedy.lines[1] == (
            'SUBSYSTEM=="powercap", KERNEL=="*:*", RUN+="/bin/chmod a+r /sys%p/energy_uj"'
        )


def test_counters_that_fail_are_told_by_their_fault(tmp_path: Path) -> None:
    package = rapl_package(tmp_path)
    for spoil, words in (
        (lambda: (package / "energy_uj").write_text("gone"), "package-0: holds no number"),
        (lambda: ((package / "energy_uj").unlink(), (package / "energy_uj").mkdir()), "Is a directory"),
    ):
        spoil()
        remedy = cpu_remedy(MODELLED, machine(), find_rapl(tmp_path))
        assert remedy is not None
        assert words in remedy.found
        assert f"Look at {package / 'energy_uj'}" in remedy.do
        assert GRANT not in remedy.do
    (fault,) = find_rapl(tmp_path, refusing(errno.EIO))
    assert (fault.fault, fault.denied) == ("Input/output error", False)


def test_without_a_tree_there_are_no_counters(tmp_path: Path) -> None:
    assert find_rapl(tmp_path / "powercap") == ()
    assert find_rapl(tmp_path) == ()


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
def test_where_there_is_no_counter_the_reason_is_told_as_far_as_known(
    facts: dict[str, Any], found: str, do: str
) -> None:
    remedy = cpu_remedy(MODELLED, machine(**facts), ())
    assert remedy is not None
    assert found in remedy.found
    assert do in remedy.do


def test_what_is_not_known_is_not_guessed() -> None:
    readable = (RaplDomain(name="package-0", path=Path("/x/energy_uj")),)
    remedy = cpu_remedy(MODELLED, machine(), readable)
    assert remedy is not None
    assert "why is not known" in remedy.found
    assert cpu_remedy(None, machine(), readable) is None
    other = cpu_remedy(MODELLED, machine(), (), is_linux=False)
    assert other is not None
    assert "on Linux alone" in other.found


PRESENT = NvmlFound(names=("H1",), driver="575")
SILENT = NvmlFound(fault="NVML Shared Library Not Found")
SAMPLED = MeteredPart(part="gpu", by="samples", energy_class=EnergyClass.MODELLED)
GPU_COUNTED = MeteredPart(part="gpu", by="counter", energy_class=EnergyClass.MEASURED)


@pytest.mark.parametrize(
    ("part", "nvml", "makers", "has_smi", "found", "do"),
    [
        (NO_GPU, SILENT, ["NVIDIA"], True, "does not answer (NVML Shared Library Not Found)", "--gpus all"),
        (None, SILENT, ["NVIDIA"], True, "does not answer", "libnvidia-ml"),
        (
            NO_GPU,
            NvmlFound(fault="no module", is_installed=False),
            ["NVIDIA"],
            True,
            "pynvml is not installed",
            "pip install nvidia-ml-py",
        ),
        (NO_GPU, PRESENT, None, False, "asks for nvidia-smi, which is not on", "nvidia-utils-NNN"),
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
def test_nothing_is_said_of_gpus_that_are_counted_or_not_there_or_not_asked_for(
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
    found = outside_settings(environ, [tmp_path, tmp_path, tmp_path / "elsewhere"])
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
    remedy = wall_remedy([MODELLED, ram])
    assert remedy is not None
    assert (remedy.place, remedy.lines) == ("ram", (WALL_METER,))
    assert wall_remedy([MODELLED]) is None
