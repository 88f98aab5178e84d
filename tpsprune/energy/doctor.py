"""One look at the machine: its devices, its meter, and what would measure more. Nothing is trained."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import psutil

from tpsprune.energy.devices import (
    NvmlFound,
    cpu_model,
    find_nvml,
    in_container,
    is_virtualised,
    pci_gpus,
)
from tpsprune.energy.parts import grade_of, parts_of
from tpsprune.energy.powercap import RaplDomain, find_rapl
from tpsprune.energy.remedies import cpu_remedy, gpu_remedies, settings_remedy, table_remedy, wall_remedy
from tpsprune.energy.surroundings import OutsideSettings, outside_settings
from tpsprune.errors import MeterError
from tpsprune.records import (
    Diagnosis,
    EnergyClass,
    EnergyMethod,
    MachineFacts,
    MeteredPart,
    Remedy,
    SoftwareFacts,
)

__all__ = ["examine"]

_PACKAGES: Final = ("tpsprune", "torch", "codecarbon")
_CPUINFO: Final = Path("/proc/cpuinfo")


def examine() -> Diagnosis:
    """Find out what can be measured on this machine; what cannot be found out is ``None``.

    The meter that a run would have is built, and shut again; it says itself what it meters.

    Cost: three to six seconds, most of them codecarbon's and torch's loading.
    """
    settings, domains, nvml, makers = outside_settings(), find_rapl(), find_nvml(), pci_gpus()
    machine = _machine(nvml, makers)
    method, fault = _method(settings)
    parts: tuple[MeteredPart, ...] = ()
    if method is not None:
        parts = parts_of(method, nvml.limit_watts, has_gpu=bool(nvml.names or makers))
    grade, meaning = grade_of(parts)
    return Diagnosis(
        machine=machine,
        software=_software(),
        parts=parts,
        grade=grade,
        grade_meaning=meaning,
        remedies=_remedies(settings, fault, machine, parts, domains, nvml, makers),
    )


def _remedies(
    settings: OutsideSettings,
    fault: str,
    machine: MachineFacts,
    parts: tuple[MeteredPart, ...],
    domains: tuple[RaplDomain, ...],
    nvml: NvmlFound,
    makers: tuple[str, ...] | None,
) -> tuple[Remedy, ...]:
    by_part = {part.part: part for part in parts}
    cpu, gpu = by_part.get("cpu"), by_part.get("gpu")
    meter = (
        Remedy(place="meter", found=f"{fault}.", do="Until then no run here is metered.") if fault else None
    )
    found = [
        settings_remedy(settings),
        meter,
        cpu_remedy(cpu, machine, domains, is_linux=sys.platform == "linux"),
        *gpu_remedies(gpu, nvml, makers, has_smi=shutil.which("nvidia-smi") is not None),
        table_remedy(machine, cpu.watts if cpu else None, is_in_table=_is_in_table(cpu, machine)),
        wall_remedy(parts),
    ]
    return tuple(remedy for remedy in found if remedy is not None)


def _method(settings: OutsideSettings) -> tuple[EnergyMethod | None, str]:
    if settings.variables or settings.files:
        return None, ""
    from tpsprune.energy.codecarbon_meter import CodecarbonMeter

    try:
        meter = CodecarbonMeter()
        meter.shut()
    except MeterError as error:
        return None, str(error)
    return meter.method(), ""


def _is_in_table(cpu: MeteredPart | None, machine: MachineFacts) -> bool | None:
    if cpu is None or cpu.energy_class is EnergyClass.MEASURED or machine.cpu_model is None:
        return None
    from tpsprune.energy.hardware import has_rated_watts

    return has_rated_watts(machine.cpu_model)


def _machine(nvml: NvmlFound, makers: tuple[str, ...] | None) -> MachineFacts:
    try:
        cpuinfo = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        cpuinfo = ""
    # NVML knows names; of boards that it does not know the bus tells the maker at least.
    unnamed = [
        f"{maker} (name not known)" for maker in makers or () if not (nvml.names and maker == "NVIDIA")
    ]
    return MachineFacts(
        cpu_model=cpu_model(cpuinfo),
        logical_cpus=os.cpu_count(),
        ram_bytes=psutil.virtual_memory().total,
        virtualised=is_virtualised(cpuinfo),
        container=in_container(),
        gpus=None if makers is None and not nvml.names else (*nvml.names, *unnamed),
        gpu_driver=nvml.driver,
    )


def _software() -> SoftwareFacts:
    import torch

    return SoftwareFacts(
        versions={"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        torch_threads=torch.get_num_threads(),
        torch_cuda=torch.version.cuda,
        cuda_available=torch.cuda.is_available(),
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
