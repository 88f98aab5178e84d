"""Who meters which part of a machine, and the grade that comes of it before anything is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tpsprune.records import EnergyClass, EnergyMethod, MeteredPart

__all__ = ["grade_of", "parts_of"]

_CPU_MODES = {
    "intel_rapl": "RAPL counter",
    "windows_emi": "Windows energy meter",
    "intel_power_gadget": "Intel Power Gadget",
}


def parts_of(
    method: EnergyMethod, gpu_watts: float | None = None, *, has_gpu: bool = False
) -> tuple[MeteredPart, ...]:
    """Return cpu, gpu and ram as ``method`` meters them; a GPU that is there but not metered is class none.

    ``gpu_watts`` is the power limit of the boards, which sampled power may reach.
    """
    parts = [
        MeteredPart(
            part=part,
            by=_by(part, energy_class, method.details),
            energy_class=energy_class,
            watts=_watts(part, energy_class, method.details, gpu_watts),
        )
        for part, energy_class in sorted(method.classes.items())
    ]
    if has_gpu and "gpu" not in method.classes:
        parts.append(MeteredPart(part="gpu", by="nothing", energy_class=EnergyClass.NONE))
    return tuple(sorted(parts, key=lambda part: part.part))


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
        return None, "as things stand nothing is metered here"
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
    constant = [part.watts for part in parts if part.energy_class is EnergyClass.CONSTANT]
    modelled = [part.watts for part in parts if part.energy_class is EnergyClass.MODELLED]
    known = [watts for watts in (*constant, *modelled) if watts is not None]
    if len(known) < len(constant) + len(modelled):
        return None, f"D or E, as the assumed watts are not all known{left_out}"
    constant_watts = sum(watts for watts in constant if watts is not None)
    words = f"{constant_watts:g} of {sum(known):g} W at full load are assumed constant{left_out}"
    if constant_watts > sum(known) / 2:
        return "E", f"mostly constants times time: {words}"
    return "D", f"a load model: {words}"


def _by(part: str, energy_class: EnergyClass, details: Mapping[str, str]) -> str:
    mode = details.get(f"{part}_mode", "")
    match part, energy_class:
        case "cpu", EnergyClass.MODELLED if "cpu_rated_watts" in details:
            return f"load model, {details['cpu_rated_watts']} W at full load"
        case "cpu", EnergyClass.MEASURED:
            return _CPU_MODES.get(mode, mode)
        case "gpu", EnergyClass.MEASURED:
            return "NVML energy counter" if mode == "counter" else mode
        case "gpu", EnergyClass.MODELLED:
            return "power samples, one a second"
        case "ram", EnergyClass.CONSTANT:
            return f"constant {details['ram_watts']} W, from its size"
    return mode or "not known"


def _watts(
    part: str, energy_class: EnergyClass, details: Mapping[str, str], gpu_watts: float | None
) -> float | None:
    if energy_class is EnergyClass.MEASURED:
        return None
    if part == "gpu":
        return gpu_watts
    given = details.get({"cpu": "cpu_rated_watts", "ram": "ram_watts"}.get(part, ""))
    return None if given is None else float(given)
