"""Energy on a model card: every joule with its class, and grams of CO₂ only where a grid was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

from tpsprune.records import EnergyClass, Grid
from tpsprune.report import words
from tpsprune.report.card_fields import NOT_RECORDED, cell, field, quoted, said, table

__all__ = ["emissions_yaml", "energy_lines"]

_JOULES_PER_KWH: Final = 3.6e6


def energy_lines(raw: Mapping[str, Any], grid: Grid | None) -> list[str]:
    """Return the section on energy: by phase and component, each with its class, and what is not in it."""
    phases = field(raw, "energy")
    if not isinstance(phases, Mapping):
        return [f"Energy: {NOT_RECORDED}."]
    meter, scope = said(field(raw, "method", "meter")), said(field(raw, "method", "scope"))
    components = list(
        dict.fromkeys(part for phase in phases.values() for part in field(phase, "joules_by_component") or ())
    )
    heading = [
        "phase",
        "seconds",
        "CPU seconds",
        *(f"{part} [{_class(raw, part)}]" for part in components),
        "sum",
    ]
    rows = [
        [
            name,
            said(field(phase, "seconds"), words.seconds),
            said(field(phase, "cpu_seconds"), words.seconds),
            *(said(field(phase, "joules_by_component", part), words.joules) for part in components),
            _joules(raw, phase) + ("" if field(phase, "valid") is not False else " (not valid)"),
        ]
        for name, phase in phases.items()
    ]
    sums = {part: _summed(phases, part) for part in components}
    total = _total(raw)
    rows.append(
        [
            "all",
            said(field(raw, "total", "seconds"), words.seconds),
            said(field(raw, "total", "cpu_seconds"), words.seconds),
            *(said(sums[part], words.joules) for part in components),
            "not metered" if total is None else f"{words.joules(total)} [{_all_classes(raw)}]",
        ]
    )
    excluded = field(raw, "method", "excluded") or ()
    return [
        f"Meter: {cell(meter)}, scope: {cell(scope)}. Each figure has its class: measured (a hardware "
        "counter), modelled (load times rated power), constant (assumed watts times seconds), simulated (a "
        "meter for tests), none.",
        "",
        *table(heading, rows),
        "",
        f"Not in these figures: {cell('; '.join(excluded)) if excluded else NOT_RECORDED}.",
        "",
        _grams_sentence(raw, grid),
    ]


def emissions_yaml(raw: Mapping[str, Any], grid: Grid | None) -> list[str]:
    """Return the block ``co2_eq_emissions`` of the metadata; nothing where there are no grams to tell."""
    grams = _grams(raw, grid)
    if grams is None or grid is None:
        return []
    details = field(raw, "method", "details") or {}
    hardware = [str(details[key]) for key in ("gpu_model", "cpu_model") if details.get(key)]
    source = f"{said(field(raw, 'method', 'meter'))} ({_all_classes(raw)}) via tpsprune; grid: {grid.source}"
    lines = ["co2_eq_emissions:", f"  emissions: {grams:.6g}", f"  source: {quoted(source)}"]
    if field(raw, "drawn_at", "rule") != "given":
        lines.append('  training_type: "pre-training"')
    if grid.country:
        lines.append(f"  geographical_location: {quoted(grid.country)}")
    if hardware:
        lines.append(f"  hardware_used: {quoted(', '.join(hardware))}")
    return lines


def _grams(raw: Mapping[str, Any], grid: Grid | None) -> float | None:
    joules = _total(raw)
    if grid is None or joules is None or EnergyClass.SIMULATED.value in _all_classes(raw):
        return None
    return joules / _JOULES_PER_KWH * grid.grams_per_kwh


def _grams_sentence(raw: Mapping[str, Any], grid: Grid | None) -> str:
    grams = _grams(raw, grid)
    if grid is None:
        return "CO₂: not claimed, because no grid factor was chosen."
    if grams is None:
        why = "no energy was metered" if _total(raw) is None else "the meter was simulated"
        return f"CO₂: none, because {why}."
    place = f", {cell(grid.country)} {grid.year}" if grid.country else ""
    return (
        f"CO₂ equivalents: {words.grams(grams)} [{_all_classes(raw)} energy, times a constant factor]: "
        f"{grid.grams_per_kwh:g} g/kWh{place}, from: {cell(grid.source)}."
    )


def _class(raw: Mapping[str, Any], part: str) -> str:
    return said(field(raw, "method", "classes", part))


def _all_classes(raw: Mapping[str, Any]) -> str:
    """Return the classes of all components in words, best first, each once."""
    found = set((field(raw, "method", "classes") or {}).values())
    order = [each.value for each in EnergyClass if each not in {EnergyClass.MIXED, EnergyClass.NONE}]
    return " + ".join(each for each in order if each in found) or NOT_RECORDED


def _joules(raw: Mapping[str, Any], phase: Any) -> str:
    joules, kind = field(phase, "joules"), field(phase, "class")
    if joules is None:
        return "not metered"
    return f"{words.joules(joules)} [{_all_classes(raw) if kind == EnergyClass.MIXED.value else said(kind)}]"


def _summed(phases: Mapping[str, Any], part: str) -> float | None:
    found = [field(phase, "joules_by_component", part) for phase in phases.values()]
    known = [each for each in found if each is not None]
    return sum(known) if known else None


def _total(raw: Mapping[str, Any]) -> float | None:
    joules = field(raw, "total", "joules")
    return float(joules) if isinstance(joules, int | float) and isfinite(joules) else None
