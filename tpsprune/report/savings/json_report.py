"""The report for programs: the assessment, its rules, and how and on what it was metered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from math import isfinite
from typing import Any

from tpsprune.records import (
    NOT_CLAIMED,
    ArmRun,
    BrokenOff,
    EnergyClass,
    EnergyReport,
    Savings,
    classes_of,
    dump,
    seconds_of,
)
from tpsprune.report.savings.exports import mean_grams, mean_joules, sci, training_class
from tpsprune.report.savings.plots import Plot
from tpsprune.report.savings.terms import (
    class_of_step,
    class_of_verdict,
    idle_class,
    lost_class,
)
from tpsprune.report.savings.view import distinct_methods


def report_json(
    savings: Savings, plots: Mapping[str, Plot], left_out: Iterable[str], journal_sha256: str = ""
) -> dict[str, Any]:
    """Return the report as JSON values, in the shape of its schema.

    Grams are the string ``not claimed`` unless a grid factor was chosen; a bound that is not finite is null.
    No joules are without their class.
    """
    comparison, verdict = savings.comparison, savings.verdict
    design, grid = comparison.design, comparison.choices.grid
    assessed = _with_classes(savings)
    for raw, run in zip(assessed["runs"], savings.runs, strict=True):
        raw.update(_of_run(comparison.run_of(run.arm, run.pair)))
        if grid is None:
            raw["grams_co2"] = NOT_CLAIMED
    report: dict[str, Any] = {
        "schema": EnergyReport.SCHEMA,
        "verdict": {
            "key": verdict.key,
            "standing": verdict.standing.value,
            "statement": verdict.statement,
            "grade": savings.grade.letter,
            "class": class_of_verdict(savings),
        },
        **assessed,
        "design": dump(design),
        "environment": {"device": design.device, "machine": design.machine, "versions": design.versions},
        "method": [dump(method) for method in distinct_methods(savings)],
        "grid": NOT_CLAIMED if grid is None else {**asdict(grid), "basis": "as chosen, use only"},
        "per_day": comparison.choices.per_day,
        "not_counted": [_not_counted(each) for each in comparison.broken_off],
        "exports": {
            "training_joules": mean_joules(savings),
            "energy_class": training_class(savings),
            "co2_eq_emissions_g": NOT_CLAIMED if grid is None else mean_grams(savings),
            "sci": sci(savings),
            "files": ["exports/co2_eq_emissions.yaml", "exports/boamps.json", "exports/sci.json"],
        },
        "plots": [{"name": plot.stem, "class": plot.kind} for plot in plots.values()],
        "not_drawn": list(left_out),
        "provenance": {
            "command": design.command,
            "recipe_sha256": design.recipe_sha256,
            "journal_sha256": journal_sha256 or None,
            "begun": design.begun,
            "pairs_asked": comparison.pairs_asked,
            "notes": list(comparison.notes),
        },
    }
    values: dict[str, Any] = _to_json_values(report, class_of_verdict(savings))
    return values


def _not_counted(each: BrokenOff) -> dict[str, Any]:
    joules = [window.total_joules for window in each.windows if window.total_joules is not None]
    return {
        "arm": each.arm,
        "seed": each.seed,
        "pair": each.pair,
        "position": each.position,
        "why": each.why or "broken off",
        "seconds": seconds_of(each.windows) if each.windows else None,
        "joules": sum(joules) if joules else None,
        "energy_class": classes_of(each.windows),
    }


def _with_classes(savings: Savings) -> dict[str, Any]:
    """Return what was assessed, with the class of every figure of energy whose record has none."""
    raw = dump(savings)
    raw["quality"] |= {"idle_energy_class": idle_class(savings), "lost_energy_class": lost_class(savings)}
    for each, step in zip(raw["attribution"], savings.attribution, strict=True):
        each["energy_class"] = class_of_step(savings, step)
    for each in raw["needed"]:
        each["energy_class"] = class_of_verdict(savings)
    if raw["wall_fit"] is not None:
        raw["wall_fit"]["energy_class"] = EnergyClass.MEASURED.value
    return raw


def _of_run(run: ArmRun | None) -> dict[str, Any]:
    """Return the rest of a run's record: its weights, what it was given, its notes, and when it drew."""
    return {
        "weights_sha256": run.weights_sha256 if run else "",
        "given": run.given if run else "",
        "notes": list(run.notes) if run else [],
        "drawn_epoch": run.drawn_epoch if run else None,
    }


def _to_json_values(value: Any, in_place_of_mixed: str) -> Any:
    """Return lists for tuples, null for numbers that are not finite, the classes in place of ``mixed``."""
    if isinstance(value, Mapping):
        return {
            str(key): in_place_of_mixed
            if (key, each) == ("energy_class", EnergyClass.MIXED.value)
            else _to_json_values(each, in_place_of_mixed)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_to_json_values(each, in_place_of_mixed) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value
