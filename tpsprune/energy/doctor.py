"""What this machine can measure: its devices, its meter, its grade, and what would measure more.

Nothing is trained. Everything that is not measured has a remedy: what was found and what to do.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import psutil

from tpsprune.energy.codecarbon_meter import OutsideSettings, find_outside_settings
from tpsprune.energy.counters import (
    POWERCAP,
    NvmlFound,
    RaplDomain,
    find_nvml,
    find_rapl,
    packages_of,
)
from tpsprune.energy.machine import cpu_model, in_container, is_virtualised, pci_gpus
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

WALL_METER: Final = "tpsprune report DIR --wall-meter FILE.csv"
_PACKAGES: Final = ("tpsprune", "torch", "codecarbon")
_CPUINFO: Final = Path("/proc/cpuinfo")
_GRANT: Final = f"sudo chmod -R a+r {POWERCAP}/intel-rapl*"
_RULE_FILE: Final = "/etc/udev/rules.d/70-rapl.rules"
_RULE: Final = 'SUBSYSTEM=="powercap", KERNEL=="*:*", RUN+="/bin/chmod a+r /sys%p/energy_uj"'
_CPU_MODES: Final = {
    "intel_rapl": "RAPL counter",
    "windows_emi": "Windows energy meter",
    "intel_power_gadget": "Intel Power Gadget",
}


def examine() -> Diagnosis:
    """Find out what can be measured on this machine; what cannot be found out is ``None``.

    The meter of a run is built and shut again; its method names what it meters.

    Cost: three to six seconds, most of them codecarbon's and torch's loading.
    """
    settings, nvml, makers = find_outside_settings(), find_nvml(), pci_gpus()
    machine = _machine(nvml, makers)
    parts: tuple[MeteredPart, ...] = ()
    fault = None
    if not (settings.variables or settings.files):
        try:
            parts = parts_of(_method(), nvml.limit_watts, has_gpu=bool(nvml.names or makers))
        except MeterError as error:
            do = "Until then no run here is metered."
            fault = Remedy(place="meter", found=f"{error}.", do=do)
    by_part = {part.part: part for part in parts}
    cpu, gpu = by_part.get("cpu"), by_part.get("gpu")
    grade, meaning = grade_of(parts)
    remedies = (
        settings_remedy(settings),
        fault,
        cpu_remedy(cpu, machine, find_rapl(), is_linux=sys.platform == "linux"),
        *gpu_remedies(gpu, nvml, makers, has_smi=shutil.which("nvidia-smi") is not None),
        table_remedy(machine, cpu.watts if cpu else None, is_in_table=_is_in_table(cpu, machine)),
        wall_remedy(parts),
    )
    return Diagnosis(
        machine=machine,
        software=_software(),
        parts=parts,
        grade=grade,
        grade_meaning=meaning,
        remedies=tuple(remedy for remedy in remedies if remedy is not None),
    )


def _method() -> EnergyMethod:
    from tpsprune.energy.codecarbon_meter import CodecarbonMeter

    meter = CodecarbonMeter()
    meter.shut()
    return meter.method()


def _is_in_table(cpu: MeteredPart | None, machine: MachineFacts) -> bool | None:
    if cpu is None or cpu.energy_class is EnergyClass.MEASURED or machine.cpu_model is None:
        return None
    from tpsprune.energy.codecarbon_meter import has_rated_watts

    return has_rated_watts(machine.cpu_model)


def _machine(nvml: NvmlFound, makers: tuple[str, ...] | None) -> MachineFacts:
    try:
        cpuinfo = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        cpuinfo = ""
    # NVML has names; of other boards the bus has at least the maker.
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


def parts_of(
    method: EnergyMethod, gpu_watts: float | None = None, *, has_gpu: bool = False
) -> tuple[MeteredPart, ...]:
    """Return cpu, gpu and ram as ``method`` meters them; a GPU that is there but not metered is class none.

    ``gpu_watts`` is the power limit of the boards, which sampled power may reach.
    """
    parts = [_part(name, kind, method, gpu_watts) for name, kind in method.classes.items()]
    if has_gpu and "gpu" not in method.classes:
        parts.append(MeteredPart(part="gpu", by="nothing", energy_class=EnergyClass.NONE))
    return tuple(sorted(parts, key=lambda part: part.part))


def _part(part: str, kind: EnergyClass, method: EnergyMethod, gpu_watts: float | None) -> MeteredPart:
    details = method.details
    mode = details.get(f"{part}_mode", "")
    match part, kind:
        case "cpu", EnergyClass.MODELLED if "cpu_rated_watts" in details:
            by = f"load model, {details['cpu_rated_watts']} W at full load"
        case "cpu", EnergyClass.MEASURED:
            by = _CPU_MODES.get(mode, mode)
        case "gpu", EnergyClass.MEASURED:
            by = "NVML energy counter" if mode == "counter" else mode
        case "gpu", EnergyClass.MODELLED:
            by = "power samples, one a second"
        case "ram", EnergyClass.CONSTANT:
            by = f"constant {details['ram_watts']} W, from its size"
        case _:
            by = mode
    watts = gpu_watts
    if part != "gpu":
        rated = details.get({"cpu": "cpu_rated_watts", "ram": "ram_watts"}.get(part, ""))
        watts = None if rated is None else float(rated)
    return MeteredPart(
        part=part,
        by=by or "not known",
        energy_class=kind,
        watts=None if kind is EnergyClass.MEASURED else watts,
    )


def grade_of(parts: Sequence[MeteredPart]) -> tuple[str | None, str]:
    """Return the letter from B to E that runs here can have, ``None`` where it is not known, and its meaning.

    B: counters for every part. C: for some; a report is B all the same where nine tenths of its joules come
    from them. D: none, and models may draw at least what is assumed constant; E: constants draw more. Watts
    are those at full load; A takes a wall meter.
    """
    drawing = [part for part in parts if part.part in {"cpu", "gpu"}]
    measured = [part.part for part in drawing if part.energy_class is EnergyClass.MEASURED]
    unmetered = [part.part for part in drawing if part.energy_class is EnergyClass.NONE]
    left_out = f"; {', '.join(unmetered)} is not metered at all" if unmetered else ""
    if not drawing:
        return None, "nothing is metered here"
    assumed = [part for part in parts if part.energy_class not in {EnergyClass.MEASURED, EnergyClass.NONE}]
    if len(measured) == len(drawing):
        counters = f"hardware counters for {' and '.join(measured)}"
        if not assumed:
            return "B", counters
        watts = sum(part.watts or 0.0 for part in assumed)
        names = " and ".join(part.part for part in assumed)
        return "C", f"{counters}; B where the {watts:g} W assumed for {names} are below a tenth"
    if measured:
        return "C", f"a hardware counter for {' and '.join(measured)}, a model for the rest{left_out}"
    if any(part.watts is None for part in assumed):
        return None, f"D or E, as the assumed watts are not all known{left_out}"
    all_watts = sum(part.watts or 0.0 for part in assumed)
    constant_watts = sum(part.watts or 0.0 for part in assumed if part.energy_class is EnergyClass.CONSTANT)
    words = f"{constant_watts:g} of {all_watts:g} W at full load are assumed constant{left_out}"
    if constant_watts > all_watts / 2:
        return "E", f"mostly constants times time: {words}"
    return "D", f"a load model: {words}"


def settings_remedy(found: OutsideSettings) -> Remedy | None:
    """Return the outside settings that prevent metering; ``None`` where there are none."""
    if not (found.variables or found.files):
        return None
    names = ", ".join([*found.variables, *map(str, found.files)])
    lines = [f"unset {name}" for name in found.variables] + [f"mv {path} {path}.away" for path in found.files]
    return Remedy(
        place="settings",
        found=f"{names}: codecarbon would use this behind the recipe, so nothing is metered here.",
        do="Remove it:",
        lines=tuple(lines),
    )


def cpu_remedy(
    part: MeteredPart | None,
    machine: MachineFacts,
    domains: tuple[RaplDomain, ...],
    *,
    is_linux: bool = True,
) -> Remedy | None:
    """Return why the processor's RAPL counters are not read, with a remedy; ``None`` where they are.

    Without a ``part``, that is without a meter, only what would hinder any meter is reported.
    """
    packages = packages_of(domains)
    at_fault = [domain for domain in packages or domains if domain.fault]
    named = ", ".join(f"{domain.name}: {domain.fault}" for domain in at_fault)
    lines: tuple[str, ...] = ()
    if part is not None and part.energy_class is EnergyClass.MEASURED:
        return None
    if not is_linux:
        found, do = "RAPL counters are read on Linux alone.", f"A wall meter sees it: {WALL_METER}"
    elif any(domain.denied for domain in at_fault):
        found = f"RAPL counters are here but may not be read ({named})."
        do = (
            "Let everybody read them, now and with a udev rule after each start, if no stranger computes "
            "here (they leak what others compute). The second line is for a file "
            f"{_RULE_FILE}:"
        )
        lines = (_GRANT, _RULE)
    elif at_fault:
        found = f"RAPL counters are here but cannot be read ({named})."
        do = f"Check {at_fault[0].path}; until it reads as a number a wall meter is the way: {WALL_METER}"
    elif packages and part is None:
        return None
    elif packages:
        found = (
            "RAPL counters are here and can be read, and yet codecarbon does not use them; why is not known."
        )
        do = f"Report it with the output of: ls -lL {POWERCAP}/*/energy_uj"
    elif machine.virtualised:
        found = "No RAPL counter: this is a virtual machine, and its hypervisor shows none."
        do = f"Nothing inside can change that: use bare metal, or a wall meter at the host: {WALL_METER}"
    elif machine.container:
        found = "No RAPL counter: containers hide them."
        do = f"Start the container with  -v {POWERCAP}:{POWERCAP}:ro  and, on the host, {_GRANT}"
    elif machine.virtualised is None:
        found = "No RAPL counter; whether a hypervisor hides it is not known."
        do = f"On bare metal 'sudo modprobe intel_rapl_msr' may bring it; else a wall meter: {WALL_METER}"
    else:
        found = "No RAPL counter: the kernel shows none."
        do = (
            "Load its driver, for AMD processors too: sudo modprobe intel_rapl_msr. If nothing appears in "
            f"{POWERCAP}, a wall meter is the way: {WALL_METER}"
        )
    return Remedy(place="cpu", found=found, do=do, lines=lines)


def gpu_remedies(
    part: MeteredPart | None, nvml: NvmlFound, makers: Sequence[str] | None, *, has_smi: bool
) -> list[Remedy]:
    """Return a remedy for each kind of GPU that is there and not counted.

    Without a ``part``, that is without a meter, only what would hinder any meter is reported.
    """
    if part is not None and part.energy_class is EnergyClass.MEASURED:
        return []
    found: list[tuple[str, str]] = []
    if part is not None and part.energy_class is not EnergyClass.NONE:
        found.append(
            (
                "The boards have no energy counter (older than Volta, or shared out by a hypervisor): power "
                "is sampled once a second.",
                f"Keep windows long; a wall meter sees what lies between the samples: {WALL_METER}",
            )
        )
    else:
        has_nvidia = nvml.names or "NVIDIA" in (makers or ())
        if has_nvidia and (part is not None or nvml.fault or not has_smi):
            found.append(_without_nvml(nvml, has_smi=has_smi))
        if "AMD" in (makers or ()) and part is not None:
            found.append(
                (
                    "An AMD GPU is not metered: codecarbon needs amdsmi, and rocm-smi on the PATH.",
                    "Install ROCm's rocm-smi and its Python package amdsmi. Graphics that are part of the "
                    "processor are on its counter already.",
                )
            )
    return [Remedy(place="gpu", found=what, do=do) for what, do in found]


def _without_nvml(nvml: NvmlFound, *, has_smi: bool) -> tuple[str, str]:
    if not nvml.is_installed:
        return "An NVIDIA GPU is not metered: pynvml is not installed.", "pip install nvidia-ml-py"
    if nvml.fault:
        return (
            f"An NVIDIA GPU is not metered: NVML does not respond ({nvml.fault}).",
            "Install NVIDIA's driver, libnvidia-ml and nvidia-smi included (Debian, Ubuntu: "
            "apt-get install nvidia-driver-NNN); start a container with --gpus all.",
        )
    if not has_smi:
        return (
            "An NVIDIA GPU is not metered: NVML responds, but codecarbon needs nvidia-smi, which is not on "
            "the PATH.",
            "Install it (Debian, Ubuntu: apt-get install nvidia-utils-NNN, of the driver's version); start a "
            "container with NVIDIA_DRIVER_CAPABILITIES=compute,utility.",
        )
    return (
        "An NVIDIA GPU is not metered although NVML and nvidia-smi are here; why is not known.",
        "Report it with the output of: nvidia-smi -q -d POWER",
    )


def table_remedy(
    machine: MachineFacts, cpu_watts: float | None, *, is_in_table: bool | None
) -> Remedy | None:
    """Return the watts assumed for a processor that codecarbon's table of rated power does not hold."""
    if is_in_table is not False or cpu_watts is None:
        return None
    each = f", {cpu_watts / machine.logical_cpus:g} W a logical CPU" if machine.logical_cpus else ""
    return Remedy(
        place="cpu",
        found=f"'{machine.cpu_model or 'This processor'}' is not in codecarbon's table of rated power: "
        f"{cpu_watts:g} W are assumed at full load{each}.",
        do="Compare runs on this machine with one another only; a wall meter measures what it draws.",
    )


def wall_remedy(parts: Iterable[MeteredPart]) -> Remedy | None:
    """Return the remedy for parts whose watts are assumed; ``None`` where there are none."""
    constant = [part.part for part in parts if part.energy_class is EnergyClass.CONSTANT]
    if not constant:
        return None
    return Remedy(
        place=", ".join(constant),
        found="Assumed watts times time: a saving here is a saving of time.",
        do="A wall meter during the runs measures everything at once, and makes the grade A:",
        lines=(WALL_METER,),
    )
