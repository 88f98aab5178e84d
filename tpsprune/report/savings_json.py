"""A report for programs: everything that was assessed, under what rules, on what, metered how."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from math import isfinite
from typing import Any

from tpsprune.records import BrokenOff, EnergyClass, Savings
from tpsprune.report.savings_exports import NOT_CLAIMED, mean_grams, mean_joules, sci
from tpsprune.report.savings_method import distinct_methods
from tpsprune.report.savings_plot import Plot, combined, energy_class

__all__ = ["report_json"]


def report_json(savings: Savings, plots: Mapping[str, Plot], left_out: Iterable[str]) -> dict[str, Any]:
    """Return the report as plain JSON values, in the shape of its schema.

    Grams are the string ``not claimed`` unless a grid factor was chosen; a bound that is not finite is null.
    """
    comparison, verdict = savings.comparison, savings.verdict
    design, grid = comparison.design, comparison.choices.grid
    assessed = savings.to_json()
    if grid is None:
        for run in assessed["runs"]:
            run["grams_co2"] = NOT_CLAIMED
    report: dict[str, Any] = {
        "schema": Savings.SCHEMA,
        "verdict": {
            "key": verdict.key,
            "standing": verdict.standing.value,
            "statement": verdict.statement,
            "grade": savings.grade.letter,
            "class": energy_class(savings),
        },
        **assessed,
        "design": design.to_json(),
        "environment": {"device": design.device, "machine": design.machine, "versions": design.versions},
        "method": [method.to_json() for method in distinct_methods(savings)],
        "grid": NOT_CLAIMED if grid is None else {**asdict(grid), "basis": "as chosen, use only"},
        "per_day": comparison.choices.per_day,
        "not_counted": [_not_counted(each) for each in comparison.broken_off],
        "exports": {
            "training_joules": mean_joules(savings),
            "co2_eq_emissions_g": NOT_CLAIMED if grid is None else mean_grams(savings),
            "sci": sci(savings),
            "files": ["exports/co2_eq_emissions.yaml", "exports/boamps.json", "exports/sci.json"],
        },
        "plots": [{"name": plot.stem, "class": plot.number_class} for plot in plots.values()],
        "not_drawn": list(left_out),
        "provenance": {
            "command": design.command,
            "recipe_sha256": design.recipe_sha256,
            "begun": design.begun,
            "pairs_asked": comparison.pairs_asked,
            "notes": list(comparison.notes),
        },
    }
    plain: dict[str, Any] = _plain(report, energy_class(savings))
    return plain


def _not_counted(each: BrokenOff) -> dict[str, Any]:
    joules = [window.total_joules for window in each.windows if window.total_joules is not None]
    return {
        "arm": each.arm,
        "seed": each.seed,
        "pair": each.pair,
        "position": each.position,
        "why": each.why or "broken off",
        "joules": sum(joules) if joules else None,
        "energy_class": combined([kind for window in each.windows for kind in window.classes.values()]),
    }


def _plain(value: Any, in_place_of_mixed: str) -> Any:
    """Return lists for tuples, null for what JSON cannot say, and the classes in place of ``mixed``."""
    if isinstance(value, Mapping):
        return {
            str(key): in_place_of_mixed
            if (key, each) == ("energy_class", EnergyClass.MIXED.value)
            else _plain(each, in_place_of_mixed)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(each, in_place_of_mixed) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value
