"""The same figures for others: a model card's block, a BoAmps report, the terms of an SCI score.

Figures are those of the records: fields of a format that were not measured are left out or null. Fixed text,
the same in every export, is what tpsprune is for: a supervised training, from scratch, of a neural network
in Python with torch, on a machine with one processor and one memory.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from typing import Any

from tpsprune.records import JOULES_PER_KWH, EnergyClass, EnergyMethod, RunLine, Savings
from tpsprune.report.savings.terms import class_of, join_class_words

_QUALITY = {"A": "high", "B": "high", "C": "medium"}
_SIMULATED = "the meter was simulated"
_FAMILIES = {
    "cross-entropy": "classification",
    "bce": "multi-label classification",
    "next-token": "language modelling",
    "mse": "regression",
    "reconstruction": "autoencoding",
}
_ACCURATE = ("cross-entropy", "bce", "next-token")
"""Losses under which the figure of a run's quality is a share that is right, as the format means accuracy."""
_DATA_TYPES = {
    **dict.fromkeys(("digits", "idx", "image-folder"), "image"),
    "modular": "token",
    "text": "text",
    "tabular": "tabular",
}


def model_card(savings: Savings) -> str:
    """Return the ``co2_eq_emissions`` block of a Hugging Face model card, as YAML.

    Without a grid factor, and of a simulated meter, there are no grams: a comment with the reason is in the
    place of the field.
    """
    arm, grid = savings.verdict.arm, savings.comparison.choices.grid
    grams = mean_grams(savings)
    if _is_simulated(savings):
        emissions = f"# emissions: none, because {_SIMULATED}"
    elif grid is None:
        emissions = "# emissions: not claimed, because no grid factor was chosen"
    elif grams is None:
        emissions = "# emissions: not known, because no energy was metered"
    else:
        emissions = (
            f"emissions: {grams:.6g}  # grams of CO2 equivalents, mean of {len(_counted(savings))} trainings"
        )
    fields = [
        emissions,
        f"source: {_quoted(f'{_meter(savings)} ({training_class(savings)}) via tpsprune')}",
        'training_type: "pre-training"',
        *([f"geographical_location: {_quoted(grid.country)}"] if grid and grid.country else []),
        f"hardware_used: {_quoted(_hardware(savings))}",
    ]
    lines = "".join(f"  {field}\n" for field in fields)
    return f"# For the metadata of a model card: training of {_quoted(arm)}.\nco2_eq_emissions:\n{lines}"


def boamps(savings: Savings) -> dict[str, Any]:
    """Return a BoAmps report (format 0.1) of a training of the verdict's arm: means over its counted runs.

    ``measurementDuration`` is in seconds, ``powerConsumption`` in kWh, as the format has them. Of a simulated
    meter there is neither energy nor calibration, the report is a draft, and its description has the reason.
    """
    design, grid = savings.comparison.design, savings.comparison.choices.grid
    runs = _counted(savings)
    details, meter, simulated = _details(savings), _meter(savings), _is_simulated(savings)
    joules, idle = mean_joules(savings), None if simulated else savings.quality.idle_watts
    calibration = None if idle is None else idle * design.idle_seconds / JOULES_PER_KWH
    begun = design.begun.replace("T", " ")[:19]
    report = {
        "header": {
            "formatVersion": "0.1",
            "formatVersionSpecificationUri": "https://github.com/Boavizta/BoAmps/tree/main/model",
            "reportId": f"{design.recipe_sha256[:16]}-{savings.verdict.key.replace('/', '-')}",
            "reportDatetime": begun,
            "reportStatus": "final" if savings.complete and not simulated else "draft",
        },
        "task": {
            "taskStage": "training",
            "taskFamily": _FAMILIES.get(design.loss),
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
            "measuredAccuracy": _mean(run.accuracy for run in runs) if design.loss in _ACCURATE else None,
            "taskDescription": f"{savings.verdict.arm} of the comparison {design.name}"
            + (f"; no energy is given, because {_SIMULATED}" if simulated else ""),
        },
        "measures": [
            {
                "measurementMethod": meter,
                "version": design.versions.get(meter),
                "cpuTrackingMode": details.get("cpu_mode"),
                "gpuTrackingMode": details.get("gpu_mode"),
                "powerCalibrationMeasurement": calibration,
                "durationCalibrationMeasurement": None if idle is None else design.idle_seconds,
                "powerConsumption": None if joules is None else joules / JOULES_PER_KWH,
                "measurementDuration": _mean(run.seconds for run in runs),
                "measurementDateTime": begun,
            }
        ],
        "system": {"os": design.machine.get("system")},
        "software": {"language": "python", "version": design.versions.get("python")},
        "infrastructure": {"components": _components(details)},
        "environment": {
            "country": (grid.country or None) if grid else None,
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
    why = _SIMULATED if _is_simulated(savings) else "no energy was metered"
    missing = [{"what": "E", "why": why}] if joules is None else []
    if grid is None:
        missing.append({"what": "O", "why": "no grid factor was chosen, so energy is not turned into grams"})
    elif grams is None:
        missing.append({"what": "O", "why": why})
    missing += [
        {"what": "M", "why": "embodied emissions of the hardware are not known to tpsprune"},
        {"what": "SCI", "why": "a score without M would not be one"},
    ]
    return {
        "standard": "ISO/IEC 21031:2024",
        "R": {"unit": "one training run", "arm": savings.verdict.arm, "runs": len(_counted(savings))},
        "E_kwh": None if joules is None else joules / JOULES_PER_KWH,
        "E_class": training_class(savings),
        "I_g_per_kwh": None if grid is None else grid.grams_per_kwh,
        "O_g": grams,
        "M_g": None,
        "SCI_g_per_R": None,
        "missing": missing,
    }


def mean_joules(savings: Savings) -> float | None:
    """Return the mean energy of a counted training of the verdict's arm; none of a simulated meter."""
    return None if _is_simulated(savings) else _mean(run.joules for run in _counted(savings))


def mean_grams(savings: Savings) -> float | None:
    """Return the mean grams of a counted training of the verdict's arm.

    None without a grid factor, and none of a simulated meter.
    """
    return None if _is_simulated(savings) else _mean(run.grams_co2 for run in _counted(savings))


def training_class(savings: Savings) -> str:
    """Return of what classes the joules of the counted trainings of the verdict's arm are."""
    return join_class_words(class_of(savings, run.energy_class) for run in _counted(savings))


def _is_simulated(savings: Savings) -> bool:
    """Return whether any of the energy came from a meter for tests: then none of it is for others."""
    classes = {kind for run in savings.comparison.runs for kind in run.method.classes.values()}
    return savings.grade.letter == "S" or EnergyClass.SIMULATED in classes


def _counted(savings: Savings) -> list[RunLine]:
    return [run for run in savings.runs if run.counted and run.arm == savings.verdict.arm]


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _methods(savings: Savings) -> list[EnergyMethod]:
    return [run.method for run in savings.comparison.runs if run.arm == savings.verdict.arm]


def _meter(savings: Savings) -> str:
    return " + ".join(dict.fromkeys(method.meter for method in _methods(savings))) or "none"


def _details(savings: Savings) -> dict[str, str]:
    return next((method.details for method in _methods(savings)), {})


def _hardware(savings: Savings) -> str:
    details = _details(savings)
    names = [details[key] for key in ("gpu_model", "cpu_model") if details.get(key)]
    return ", ".join(names) or str(savings.comparison.design.machine.get("architecture", "not known"))


def _components(details: dict[str, str]) -> list[dict[str, Any]]:
    # One: logical processors are not processors, and the number of those was not counted.
    parts = [{"componentType": "cpu", "componentName": details.get("cpu_model"), "nbComponent": 1}]
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
    return _DATA_TYPES.get(str(kind), "other")


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    return [_without_none(each) for each in value] if isinstance(value, list) else value


def _quoted(text: str) -> str:
    # JSON's strings are YAML's double-quoted ones.
    return json.dumps(text, ensure_ascii=False)
