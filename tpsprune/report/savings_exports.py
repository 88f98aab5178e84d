"""The same figures for others: a model card's block, a BoAmps report, the terms of an SCI score.

What a format asks for and nobody measured is left out or null, and named; nothing is filled in.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from typing import Any, Final

from tpsprune.records import RunLine, Savings
from tpsprune.report.savings_plot import energy_class

__all__ = ["NOT_CLAIMED", "boamps", "mean_grams", "mean_joules", "model_card", "sci"]

NOT_CLAIMED: Final = "not claimed"
"""What stands in place of grams where no grid factor was chosen."""

_JOULES_PER_KWH = 3.6e6
_QUALITY = {"A": "high", "B": "high", "C": "medium"}
_DATA_TYPES = {"digits": "image", "idx": "image", "cifar": "image", "cifar10": "image", "modular": "token"}


def model_card(savings: Savings) -> str:
    """Return the ``co2_eq_emissions`` block of a Hugging Face model card, as YAML.

    Without a grid factor there are no grams: the field is left out and a comment says why.
    """
    arm, grid = savings.verdict.arm, savings.comparison.choices.grid
    grams = mean_grams(savings)
    if grid is None:
        emissions = ["# emissions: not claimed, because no grid factor was chosen"]
    elif grams is None:
        emissions = ["# emissions: not known, because no energy was metered"]
    else:
        emissions = [
            f"emissions: {grams:.6g}  # grams of CO2 equivalents, mean of {len(_counted(savings))} trainings"
        ]
    fields = [
        *emissions,
        f"source: {_quoted(f'codecarbon ({energy_class(savings)}) via tpsprune')}",
        'training_type: "pre-training"',
        *([f"geographical_location: {_quoted(grid.country)}"] if grid else []),
        f"hardware_used: {_quoted(_hardware(savings))}",
    ]
    lines = "".join(f"  {field}\n" for field in fields)
    return f"# For the metadata of a model card: training of {_quoted(arm)}.\nco2_eq_emissions:\n{lines}"


def boamps(savings: Savings) -> dict[str, Any]:
    """Return a BoAmps report (format 0.1) of a training of the verdict's arm: means over its counted runs.

    ``measurementDuration`` is in seconds, ``powerConsumption`` in kWh, as the format has them.
    """
    design, grid = savings.comparison.design, savings.comparison.choices.grid
    runs = _counted(savings)
    details = next((run.method.details for run in savings.comparison.runs), {})
    joules, idle = mean_joules(savings), savings.quality.idle_watts
    calibration = None if idle is None else idle * design.idle_seconds / _JOULES_PER_KWH
    begun = design.begun.replace("T", " ")[:19]
    report = {
        "header": {
            "formatVersion": "0.1",
            "formatVersionSpecificationUri": "https://github.com/Boavizta/BoAmps/tree/main/model",
            "reportId": f"{design.recipe_sha256[:16]}-{savings.verdict.key.replace('/', '-')}",
            "reportDatetime": begun,
            "reportStatus": "final" if savings.complete else "draft",
        },
        "task": {
            "taskStage": "training",
            "taskFamily": "classification",
            "nbRequest": 1,
            "algorithms": [
                {
                    "trainingType": "supervisedLearning",
                    "algorithmType": "neural network",
                    "framework": "torch",
                    "frameworkVersion": design.versions.get("torch"),
                    "parametersNumber": _mean(run.parameters for run in runs),
                    "epochsNumber": _mean(run.epochs for run in runs),
                }
            ],
            "dataset": [{"dataUsage": "input", "dataType": _data_type(design.recipe_text)}],
            "measuredAccuracy": _mean(run.accuracy for run in runs),
            "taskDescription": f"{savings.verdict.arm} of the comparison {design.name}",
        },
        "measures": [
            {
                "measurementMethod": "codecarbon",
                "version": design.versions.get("codecarbon"),
                "cpuTrackingMode": details.get("cpu_mode"),
                "gpuTrackingMode": details.get("gpu_mode"),
                "powerCalibrationMeasurement": calibration,
                "durationCalibrationMeasurement": None if idle is None else design.idle_seconds,
                "powerConsumption": None if joules is None else joules / _JOULES_PER_KWH,
                "measurementDuration": _mean(run.seconds for run in runs),
                "measurementDateTime": begun,
            }
        ],
        "system": {"os": design.machine.get("system")},
        "software": {"language": "python", "version": design.versions.get("python")},
        "infrastructure": {"components": _components(savings, details)},
        "environment": {
            "country": None if grid is None else grid.country,
            "powerSourceCarbonIntensity": None if grid is None else grid.grams_per_kwh,
        },
        "quality": _QUALITY.get(savings.grade.letter, "low"),
    }
    kept: dict[str, Any] = _without_none(report)
    return kept


def sci(savings: Savings) -> dict[str, Any]:
    """Return the terms of a software carbon intensity (ISO/IEC 21031): SCI = (O + M) per R, O = E · I.

    The score itself stays null, because embodied emissions are not known here.
    """
    grid, joules, grams = savings.comparison.choices.grid, mean_joules(savings), mean_grams(savings)
    missing = [
        {"what": "M", "why": "embodied emissions of the hardware are not known to tpsprune"},
        {"what": "SCI", "why": "a score without M would not be one"},
    ]
    if grid is None:
        missing.insert(
            0, {"what": "O", "why": "no grid factor was chosen, so energy is not turned into grams"}
        )
    elif grams is None:
        missing.insert(0, {"what": "O", "why": "no energy was metered"})
    return {
        "standard": "ISO/IEC 21031:2024",
        "R": {"unit": "one training run", "arm": savings.verdict.arm, "runs": len(_counted(savings))},
        "E_kwh": None if joules is None else joules / _JOULES_PER_KWH,
        "E_class": energy_class(savings),
        "I_g_per_kwh": None if grid is None else grid.grams_per_kwh,
        "O_g": grams,
        "M_g": None,
        "SCI_g_per_R": None,
        "missing": missing,
    }


def mean_joules(savings: Savings) -> float | None:
    """Return the mean energy of a counted training of the verdict's arm."""
    return _mean(run.joules for run in _counted(savings))


def mean_grams(savings: Savings) -> float | None:
    """Return the mean grams of a counted training of the verdict's arm; none without a grid factor."""
    return _mean(run.grams_co2 for run in _counted(savings))


def _counted(savings: Savings) -> list[RunLine]:
    return [run for run in savings.runs if run.counted and run.arm == savings.verdict.arm]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _hardware(savings: Savings) -> str:
    details = next((run.method.details for run in savings.comparison.runs), {})
    names = [details[key] for key in ("gpu_model", "cpu_model") if details.get(key)]
    return ", ".join(names) or str(savings.comparison.design.machine.get("architecture", "not known"))


def _components(savings: Savings, details: dict[str, str]) -> list[dict[str, Any]]:
    cpus = savings.comparison.design.machine.get("logical_cpus")
    parts = [{"componentType": "cpu", "componentName": details.get("cpu_model"), "nbComponent": cpus}]
    if "gpu_model" in details:
        boards = details["gpu_model"].split(", ")
        parts.append(
            {"componentType": "gpu", "componentName": details["gpu_model"], "nbComponent": len(boards)}
        )
    return [*parts, {"componentType": "ram", "nbComponent": 1}]


def _data_type(recipe_text: str) -> str:
    """Return what kind of data a recipe names, as BoAmps calls it.

    >>> _data_type('task = { data = { kind = "digits" } }'), _data_type("no recipe")
    ('image', 'other')
    """
    try:
        kind = tomllib.loads(recipe_text)["task"]["data"]["kind"]
    except (tomllib.TOMLDecodeError, KeyError, TypeError):
        return "other"
    return next((word for start, word in _DATA_TYPES.items() if str(kind).startswith(start)), "other")


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    return [_without_none(each) for each in value] if isinstance(value, list) else value


def _quoted(text: str) -> str:
    # JSON's strings are YAML's double-quoted ones.
    return json.dumps(text, ensure_ascii=False)
