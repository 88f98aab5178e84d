"""A model card: what an exported ticket is, its quality and energy, and how to load it.

Markdown with YAML in front, as the Hugging Face Hub reads it; its text is in ``templates/card.md.j2``, that
of a ticket without a run in ``templates/extraction.md.j2``. The same run gives the same bytes.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from math import isfinite
from typing import Any, Final

from jinja2 import ChainableUndefined, Environment, Undefined

from tpsprune.records import (
    JOULES_PER_KWH,
    EnergyClass,
    Grid,
    GroupChange,
    Stamp,
    Unpruned,
    join_classes,
)
from tpsprune.report import words
from tpsprune.report.forms import Number, load_templates

_MISSING: Final = "not recorded"
_TASKS: Final = {
    ("image", "cross-entropy"): "image-classification",
    ("vector", "cross-entropy"): "tabular-classification",
    ("vector", "mse"): "tabular-regression",
    ("tokens", "next-token"): "text-generation",
}
"""What the Hugging Face Hub calls a task, by the kind of inputs and the loss."""
_METRICS: Final = {"accuracy": "accuracy", "R²": "r_squared", "next-token accuracy": "accuracy"}
_INPUTS: Final = {
    "image": "images, float32 (items, channels, height, width)",
    "tokens": "token ids below {vocabulary}, int64 (items, length)",
    "vector": "vectors, float32 (items, features)",
}


def model_card(
    raw: Mapping[str, Any],
    *,
    recipe_text: str,
    recipe_sha256: str,
    architecture: str,
    formats: Mapping[str, Sequence[str]],
    stamps: Mapping[str, Stamp],
    checked: Mapping[str, float],
    batches: Sequence[int],
    auto_class: str = "",
    grid: Grid | None = None,
    of_bundle: bool = False,
) -> str:
    """Return the card's text.

    Args:
        raw: ``result.json`` of the run; what it does not hold is ``not recorded``.
        recipe_text: the run's recipe, as resolved.
        recipe_sha256: of that text.
        architecture: the name of the model's class.
        formats: the files of each format, in the requested order.
        stamps: of every file but the card and the manifest.
        checked: by format, how much of the largest score a reloaded ticket may differ by.
        batches: the batch sizes it was compared at.
        auto_class: of transformers, which loads format ``hf`` where code lies beside the weights.
        grid: what turns joules into grams of CO₂, if one was chosen.
        of_bundle: whether ``raw`` is what is known of a bundle, or of one size of a family: of no run.
    """
    task = _field(raw, "task")
    # Earlier runs have no name of quality: theirs is accuracy.
    quality = str(_field(task, "quality") or "accuracy")
    text = (
        _templates()
        .get_template("card.md.j2")
        .render(
            run=raw,
            recipe_text=recipe_text,
            recipe_sha256=recipe_sha256,
            architecture=architecture,
            formats=formats,
            stamps=stamps,
            checked=checked,
            batches=batches,
            auto_class=auto_class,
            grid=grid,
            of_bundle=of_bundle,
            quality=quality,
            metric=metric_of(quality),
            hub_task=hub_task_of(str(_field(task, "input_kind")), _field(task, "loss") or "cross-entropy"),
            inputs=_describe_inputs(task),
            batch=_example_batch(task),
            model_kind=_model_kind(recipe_text),
            **_energy(raw, grid),
        )
    )
    return text.rstrip("\n") + "\n"


def extraction_card(
    *,
    architecture: str,
    target: str,
    macs_share: float,
    parameters: int,
    changes: Sequence[GroupChange],
    unpruned: Sequence[Unpruned],
    notes: Sequence[str],
    versions: Mapping[str, str],
    recipe_text: str = "",
) -> str:
    """Return the card of a ticket that no run made; the arguments are the extraction's.

    ``recipe_text``: of the recipe beside it, which says what its model is built by.
    """
    text = (
        _templates()
        .get_template("extraction.md.j2")
        .render(
            architecture=architecture,
            target=target,
            macs_share=macs_share,
            parameters=parameters,
            changes=changes,
            unpruned=unpruned,
            notes=notes,
            versions=versions,
            has_recipe=bool(recipe_text),
            calls_code=_model_kind(recipe_text) == "custom",
        )
    )
    return text.rstrip("\n") + "\n"


def metric_of(quality: str) -> str:
    """Return what the Hugging Face Hub calls a quality."""
    return _METRICS.get(quality, quality.replace(" ", "_"))


def hub_task_of(input_kind: str, loss: str) -> str | None:
    """Return what the Hugging Face Hub calls a task, if it has a name."""
    return _TASKS.get((input_kind, loss))


@cache
def _templates() -> Environment:
    environment = load_templates("md", {"share": words.share, "shown": _show}, {"missing": _MISSING})
    environment.undefined = ChainableUndefined
    environment.tests["recorded"] = lambda value: not (value is None or isinstance(value, Undefined))
    return environment


def _show(value: Any, how: str = "") -> str:
    """Return a value as text: by the named function of ``words``, or by a ``%`` format."""
    if value is None or isinstance(value, Undefined):
        return _MISSING
    if how.startswith("%"):
        return str(how % value)
    return str(getattr(words, how)(value)) if how else str(value)


def _field(raw: Any, *path: str) -> Any:
    """Return the value at a path of nested mappings; ``None`` where any part of it is missing.

    >>> _field({"ticket": {"macs": 3}}, "ticket", "macs"), _field({}, "ticket", "macs")
    (3, None)
    """
    for name in path:
        if not isinstance(raw, Mapping) or name not in raw:
            return None
        raw = raw[name]
    return raw


def _model_kind(recipe_text: str) -> str:
    """Return the kind of the recipe's model; empty where the text names none."""
    try:
        return str(tomllib.loads(recipe_text)["task"]["model"]["kind"])
    except (tomllib.TOMLDecodeError, KeyError, TypeError):
        return ""


def _energy(raw: Mapping[str, Any], grid: Grid | None) -> dict[str, Any]:
    """Return the energy figures of the card, joules with their class, grams only with a grid."""
    kinds: Mapping[str, str] = _field(raw, "method", "classes") or {}
    classes = join_classes(EnergyClass(kind) for kind in kinds.values()) if kinds else _MISSING
    energy = _field(raw, "energy")
    phases: list[Any] = list(energy.values()) if isinstance(energy, Mapping) else []
    by_part = [_field(phase, "joules_by_component") or {} for phase in phases]
    parts = list(dict.fromkeys(part for joules in by_part for part in joules))
    joules = _field(raw, "total", "joules")
    total = float(joules) if isinstance(joules, int | float) and isfinite(joules) else None
    by_component = [[each[part] for each in by_part if each.get(part) is not None] for part in parts]
    simulated = EnergyClass.SIMULATED.value in classes
    grams = None
    if grid is not None and total is not None and not simulated:
        grams = total / JOULES_PER_KWH * grid.grams_per_kwh

    def parts_of(phase: Any) -> list[str]:
        return [_show(_field(phase, "joules_by_component", part), "joules") for part in parts]

    def sum_of(phase: Any) -> Number:
        kind = _show(_field(phase, "class"))
        joules = words.joules(_field(phase, "joules"))
        return Number(joules, classes if kind == EnergyClass.MIXED.value else kind)

    return {
        "classes": classes,
        "components": [(part, f" ({_show(kinds.get(part))})") for part in parts],
        "parts_of": parts_of,
        "sum_of": sum_of,
        "sums": [_show(sum(joules) if joules else None, "joules") for joules in by_component],
        "total": Number(words.joules(total), classes),
        "grams": grams,
        "grams_words": Number(words.grams(grams), classes),
        "why_no_grams": "no energy was metered" if total is None else "the meter was simulated",
    }


def _describe_inputs(task: Any) -> str:
    if parts := _field(task, "parts"):
        named = [f"{part['name']} {part['dtype']} {_sizes(part['shape'])}".strip() for part in parts]
        return f"several tensors, by {'name' if parts[0]['name'] else 'position'}: {', '.join(named)}"
    kind, shape = _field(task, "input_kind"), _field(task, "input_shape")
    if kind is None or shape is None:
        return f"inputs ({_MISSING})"
    described = _INPUTS.get(kind, str(kind)).format(vocabulary=_show(_field(task, "vocabulary")))
    return f"{described}: {_sizes(shape)}"


def _sizes(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, ('items', *shape)))})"


def _example_batch(task: Any) -> dict[str, str]:
    """Return Python for a batch of two items, as far as the run recorded what they are.

    As ``arguments`` of a model, as one ``argument`` of a program, and as the ``arrays`` of a graph by name.
    """
    if parts := _field(task, "parts"):
        made = [_zeros((2, *part["shape"]), part["dtype"], part["highest"]) for part in parts]
        names = [part["name"] for part in parts]
        if any(names):
            named = _named(names, made)
            arguments, argument = f"**{{{named}}}", f"{{{named}}}"
        else:
            names = [f"input_{place}" for place in range(len(parts))]
            arguments = ", ".join(made)
            argument = f"({arguments},)"
        arrays = _named(names, [f"{each}.numpy()" for each in made])
        return {"arguments": arguments, "argument": argument, "arrays": arrays}
    kind, shape = _field(task, "input_kind"), _field(task, "input_shape")
    one = "batch"
    if shape and kind in _INPUTS:
        dtype = ", dtype=torch.int64" if kind == "tokens" else ""
        one = f"torch.zeros({', '.join(map(str, (2, *shape)))}{dtype})"
    return {"arguments": one, "argument": one, "arrays": f"session.get_inputs()[0].name: {one}.numpy()"}


def _named(names: Sequence[str], values: Sequence[str]) -> str:
    return ", ".join(f"{json.dumps(name)}: {value}" for name, value in zip(names, values, strict=True))


def _zeros(shape: Sequence[int], dtype: str, highest: int) -> str:
    """Return one tensor of several: whole numbers as high as the data had them, which a mask lets through."""
    sizes = ", ".join(map(str, shape))
    if dtype == "float32":
        return f"torch.zeros({sizes})"
    return f"torch.full([{sizes}], {'True' if dtype == 'bool' else highest})"
