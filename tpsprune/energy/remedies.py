"""What would measure more: for everything that is not measured, what was found and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from tpsprune.energy.devices import NvmlFound
from tpsprune.energy.powercap import POWERCAP, RaplDomain, packages_of
from tpsprune.energy.surroundings import OutsideSettings
from tpsprune.records import EnergyClass, MachineFacts, MeteredPart, Remedy

__all__ = ["cpu_remedy", "gpu_remedies", "settings_remedy", "table_remedy", "wall_remedy"]

WALL_METER: Final = "tpsprune report DIR --wall-meter FILE.csv"
_GRANT: Final = f"sudo chmod -R a+r {POWERCAP}/intel-rapl*"
_RULE_FILE: Final = "/etc/udev/rules.d/70-rapl.rules"
_RULE: Final = 'SUBSYSTEM=="powercap", KERNEL=="*:*", RUN+="/bin/chmod a+r /sys%p/energy_uj"'


def settings_remedy(found: OutsideSettings) -> Remedy | None:
    """Say which outside settings stand in the way; ``None`` where there are none."""
    if not (found.variables or found.files):
        return None
    names = ", ".join([*found.variables, *map(str, found.files)])
    return Remedy(
        place="settings",
        found=f"{names}: codecarbon would take this up behind the recipe, so nothing is metered here.",
        do="Take it away:",
        lines=(
            *(f"unset {name}" for name in found.variables),
            *(f"mv {path} {path}.away" for path in found.files),
        ),
    )


def cpu_remedy(
    part: MeteredPart | None,
    machine: MachineFacts,
    domains: tuple[RaplDomain, ...],
    *,
    is_linux: bool = True,
) -> Remedy | None:
    """Say why the processor's RAPL counters are not read and what would do; ``None`` where they are.

    Without a ``part``, which is where there is no meter, only what would hinder any is told.
    """
    if part is not None and part.energy_class is EnergyClass.MEASURED:
        return None
    if not is_linux:
        return _cpu("RAPL counters are read on Linux alone.", f"A wall meter sees it: {WALL_METER}")
    packages = packages_of(domains)
    at_fault = [domain for domain in packages or domains if domain.fault]
    if any(domain.denied for domain in at_fault):
        return Remedy(
            place="cpu",
            found=f"RAPL counters are here but may not be read ({_named(at_fault)}).",
            do="Let everybody read them, now and with a udev rule after each start, if no stranger computes "
            "here (they leak what others compute). The second line is for a file "
            f"{_RULE_FILE}:",
            lines=(_GRANT, _RULE),
        )
    if at_fault:
        return _cpu(
            f"RAPL counters are here but cannot be read ({_named(at_fault)}).",
            f"Look at {at_fault[0].path}; until it reads as a number a wall meter is the way: {WALL_METER}",
        )
    if packages and part is None:
        return None
    if packages:
        return _cpu(
            "RAPL counters are here and can be read, and yet codecarbon does not use them; why is not known.",
            f"Report it with the output of: ls -lL {POWERCAP}/*/energy_uj",
        )
    return _cpu(*_without_rapl(machine))


def _without_rapl(machine: MachineFacts) -> tuple[str, str]:
    if machine.virtualised:
        return (
            "No RAPL counter: this is a virtual machine, and its hypervisor shows none.",
            f"Nothing inside can change that: use bare metal, or put a wall meter at the host: {WALL_METER}",
        )
    if machine.container:
        return (
            "No RAPL counter: containers hide them.",
            f"Start the container with  -v {POWERCAP}:{POWERCAP}:ro  and, on the host, {_GRANT}",
        )
    if machine.virtualised is None:
        return (
            "No RAPL counter; whether a hypervisor hides it is not known.",
            f"On bare metal 'sudo modprobe intel_rapl_msr' may bring it; else a wall meter: {WALL_METER}",
        )
    return (
        "No RAPL counter: the kernel shows none.",
        "Load its driver, for AMD processors too: sudo modprobe intel_rapl_msr. If nothing appears in "
        f"{POWERCAP}, a wall meter is the way: {WALL_METER}",
    )


def gpu_remedies(
    part: MeteredPart | None, nvml: NvmlFound, makers: Sequence[str] | None, *, has_smi: bool
) -> list[Remedy]:
    """Say of each GPU that is there and not counted what would count it.

    Without a ``part``, which is where there is no meter, only what would hinder any is told.
    """
    if part is not None and part.energy_class is EnergyClass.MEASURED:
        return []
    if part is not None and part.energy_class is not EnergyClass.NONE:
        return [
            _gpu(
                "The boards have no energy counter (older than Volta, or shared out by a hypervisor): power "
                "is sampled once a second.",
                f"Keep windows long; a wall meter sees what lies between the samples: {WALL_METER}",
            )
        ]
    found = makers or ()
    remedies = []
    if (nvml.names or "NVIDIA" in found) and (part is not None or nvml.fault or not has_smi):
        remedies.append(_gpu(*_without_nvml(nvml, has_smi=has_smi)))
    if "AMD" in found and part is not None:
        remedies.append(
            _gpu(
                "An AMD GPU is not metered: codecarbon asks amdsmi, and rocm-smi must be on the PATH.",
                "Install ROCm's rocm-smi and its Python package amdsmi. Graphics that are part of the "
                "processor are on its counter already.",
            )
        )
    return remedies


def _without_nvml(nvml: NvmlFound, *, has_smi: bool) -> tuple[str, str]:
    if not nvml.is_installed:
        return "An NVIDIA GPU is not metered: pynvml is not installed.", "pip install nvidia-ml-py"
    if nvml.fault:
        return (
            f"An NVIDIA GPU is not metered: NVML does not answer ({nvml.fault}).",
            "Install NVIDIA's driver, libnvidia-ml and nvidia-smi included (Debian, Ubuntu: "
            "apt-get install nvidia-driver-NNN); start a container with --gpus all.",
        )
    if not has_smi:
        return (
            "An NVIDIA GPU is not metered: NVML answers, but codecarbon asks for nvidia-smi, which is not on "
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
    """Say what watts are assumed for a processor that codecarbon's table of rated power does not hold."""
    if is_in_table is not False or cpu_watts is None:
        return None
    each = f", {cpu_watts / machine.logical_cpus:g} W a logical CPU" if machine.logical_cpus else ""
    return _cpu(
        f"'{machine.cpu_model or 'This processor'}' is not in codecarbon's table of rated power: "
        f"{cpu_watts:g} W are assumed at full load{each}.",
        "Compare runs on this machine with one another only; what it truly draws a wall meter says.",
    )


def wall_remedy(parts: Iterable[MeteredPart]) -> Remedy | None:
    """Say what stands for parts whose watts are assumed; ``None`` where there are none."""
    constant = [part for part in parts if part.energy_class is EnergyClass.CONSTANT]
    if not constant:
        return None
    return Remedy(
        place=", ".join(part.part for part in constant),
        found="Assumed watts times time: a saving here is a saving of time.",
        do="A wall meter beside the runs measures everything at once, and makes the grade A:",
        lines=(WALL_METER,),
    )


def _named(domains: Iterable[RaplDomain]) -> str:
    return ", ".join(f"{domain.name}: {domain.fault}" for domain in domains)


def _cpu(found: str, do: str) -> Remedy:
    return Remedy(place="cpu", found=found, do=do)


def _gpu(found: str, do: str) -> Remedy:
    return Remedy(place="gpu", found=found, do=do)
