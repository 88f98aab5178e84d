"""A model card: what an exported ticket is, how good, how dear, and how to load it.

Markdown with YAML in front, as the Hugging Face Hub reads it. The same run gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tpsprune.records import Grid, Stamp
from tpsprune.report import words
from tpsprune.report.card_energy import emissions_yaml, energy_lines
from tpsprune.report.card_fields import NOT_RECORDED, cell, field, fold, quoted, said, table
from tpsprune.report.card_loading import loading_lines

__all__ = ["model_card"]

_TASKS: Final = {
    ("image", "cross-entropy"): "image-classification",
    ("vector", "cross-entropy"): "tabular-classification",
    ("vector", "mse"): "tabular-regression",
    ("tokens", "next-token"): "text-generation",
}
"""What the Hugging Face Hub calls a task, by the kind of inputs and the loss."""
_METRICS: Final = {"accuracy": "accuracy", "R²": "r_squared", "next-token accuracy": "accuracy"}
_GIVEN: Final = "given"


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
    grid: Grid | None = None,
) -> str:
    """Return the card's text.

    Args:
        raw: ``result.json`` of the run; what it does not hold is ``not recorded``.
        recipe_text: the run's recipe, as resolved.
        recipe_sha256: of that text.
        architecture: the name of the model's class.
        formats: the files of each format, in the order asked for.
        stamps: of every file beside the card and the manifest.
        checked: by format, how much of the largest score a reloaded ticket may differ by.
        batches: the batch sizes it was compared at.
        grid: what turns joules into grams of CO₂, if one was chosen.
    """
    sections = {
        "": _opening(raw, architecture),
        "Figures": _figures(raw),
        "Energy": energy_lines(raw, grid),
        "What was cut": _cuts(raw),
        "How to load it": loading_lines(raw, formats, kind=_kind(recipe_text), architecture=architecture),
        "Recipe": [
            f"`{cell(said(field(raw, 'name')))}`, seed {said(field(raw, 'seed'))}, "
            f"SHA-256 `{recipe_sha256}`.",
            "",
            *fold("recipe.toml", recipe_text, "toml"),
        ],
        "Files": _files(stamps, checked, batches),
        "Made with": _made(raw),
    }
    lines = ["---", *_metadata(raw, formats, grid), "---", ""]
    for title, body in sections.items():
        lines += [f"## {title}" if title else f"# {cell(said(field(raw, 'name')))}", "", *body, ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _metadata(raw: Mapping[str, Any], formats: Mapping[str, Sequence[str]], grid: Grid | None) -> list[str]:
    tags = ["tpsprune", "pruning", "structured-pruning", *(each for each in ("onnx",) if each in formats)]
    task = _TASKS.get((str(field(raw, "task", "input_kind")), field(raw, "task", "loss") or "cross-entropy"))
    quality = _quality(raw)
    metric = _METRICS.get(quality, quality.replace(" ", "_"))
    accuracy = field(raw, "ticket", "accuracy")
    lines = [f"library_name: {'transformers' if 'hf' in formats else 'tpsprune'}", "tags:"]
    lines += [f"- {tag}" for tag in tags]
    if task:
        lines.append(f"pipeline_tag: {task}")
    if accuracy is not None:
        name = quoted(said(field(raw, "name")))
        lines += [
            "metrics:",
            f"- {metric}",
            "model-index:",
            f"- name: {name}",
            "  results:",
            "  - task:",
            f"      type: {task or 'other'}",
            "    dataset:",
            f"      name: {name}",
            f"      type: {name}",
            "      split: test",
            "    metrics:",
            f"    - type: {metric}",
            *([] if quality == metric else [f"      name: {quoted(quality)}"]),
            f"      value: {accuracy:.6g}",
        ]
    return [*lines, *emissions_yaml(raw, grid)]


def _opening(raw: Mapping[str, Any], architecture: str) -> list[str]:
    share = said(field(raw, "macs_share"), words.share)
    return [
        f"A `{cell(architecture)}` of which units were cut away by tpsprune: the ticket, at {share} of the "
        f"dense model's multiply-accumulates and {said(field(raw, 'parameters_share'), words.share)} of its "
        "parameters.",
        "",
        f"It takes {_inputs(raw)} and gives {said(field(raw, 'task', 'classes'))} scores for each "
        f"{'token' if field(raw, 'task', 'loss') == 'next-token' else 'item'}.",
    ]


def _inputs(raw: Mapping[str, Any]) -> str:
    if parts := field(raw, "task", "parts"):
        told = [f"{cell(part['name'])} {part['dtype']} {_sizes(part['shape'])}".strip() for part in parts]
        return f"several tensors, by {'name' if parts[0]['name'] else 'position'}: {', '.join(told)}"
    kind, shape = field(raw, "task", "input_kind"), field(raw, "task", "input_shape")
    if kind is None or shape is None:
        return f"inputs ({NOT_RECORDED})"
    known = {
        "image": "images, float32 (items, channels, height, width)",
        "tokens": f"token ids below {said(field(raw, 'task', 'vocabulary'))}, int64 (items, length)",
        "vector": "vectors, float32 (items, features)",
    }
    return f"{known.get(kind, cell(kind))}: {_sizes(shape)}"


def _sizes(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, ('items', *shape)))})"


def _quality(raw: Mapping[str, Any]) -> str:
    """Return what quality is called; runs of before there were names of it told classes apart."""
    return str(field(raw, "task", "quality") or "accuracy")


def _figures(raw: Mapping[str, Any]) -> list[str]:
    dense, ticket = field(raw, "dense"), field(raw, "ticket")
    qualities = (said(field(each, "accuracy"), "{:.4f}".format) for each in (dense, ticket))
    # A ratio of qualities says nothing: R² may be below zero, and chance is rarely nought.
    rows: list[Sequence[str]] = [(f"{_quality(raw)}, test split", *qualities, "–")]
    rows += [
        (title, *(said(field(each, name), text) for each in (dense, ticket)), _ratio(dense, ticket, name))
        for title, name, text in (
            ("multiply-accumulates per item", "macs", words.count),
            ("parameters", "parameters", words.count),
            ("size as safetensors", "bytes", words.bytes_),
        )
    ]
    batches = list(field(ticket, "latency_seconds") or {}) or ["latency"]
    for batch in batches:
        first, second = (field(each, "latency_seconds", batch) for each in (dense, ticket))
        rows.append(
            (
                f"latency, {batch.replace('-', ' ')}" if batch != "latency" else batch,
                *(said(each, _time) for each in (first, second)),
                _ratio(first, second, "median"),
            )
        )
    was_given = field(raw, "drawn_at", "rule") == _GIVEN
    return [
        *table(["", "dense", "ticket", "ticket / dense"], rows),
        "",
        f"Dense: the model {'as it was given' if was_given else 'as it was when the ticket was drawn'}. "
        "The test split was read once, at the end of the run. Right after the cut, before any retraining, "
        f"the ticket's {_quality(raw)} on the validation split was "
        f"{said(field(raw, 'cut_validation_accuracy'), '{:.4f}'.format)}. Latency: seconds of one forward "
        f"pass over the batch on {cell(said(field(raw, 'device')))}, median (quartiles).",
    ]


def _ratio(dense: Any, ticket: Any, name: str) -> str:
    first, second = field(dense, name), field(ticket, name)
    return words.share(second / first) if first and second is not None else NOT_RECORDED


def _time(figures: Mapping[str, float]) -> str:
    middle, low, high = (
        said(field(figures, name), words.seconds) for name in ("median", "lower_quartile", "upper_quartile")
    )
    return f"{middle} ({low} to {high})"


def _cuts(raw: Mapping[str, Any]) -> list[str]:
    groups = field(raw, "groups")
    if groups is None:
        return [f"Groups and widths: {NOT_RECORDED}."]
    rows = [
        (
            field(each, "group"),
            said(field(each, "kind")),
            said(field(each, "width_before")),
            said(field(each, "width_after")),
            said(field(each, "effective_rank"), "{:.1f}".format),
            said(field(each, "residual_share"), "{:.4f}".format),
        )
        for each in groups
    ]
    lines = table(["group", "unit", "before", "after", "effective rank", "residual share"], rows)
    for name, title in (("drawn_at", "Drawn"), ("stopped_at", "Ended")):
        epoch, reason = field(raw, name, "epoch"), field(raw, name, "reason")
        lines += ["", f"{title} at epoch {said(epoch, '{:.1f}'.format)}: {cell(said(reason))}."]
    if left := field(raw, "left_alone"):
        lines += ["", "Left alone:", ""]
        lines += [f"- {cell(field(each, 'name'))}: {cell(field(each, 'reason'))}" for each in left]
    if notes := field(raw, "notes"):
        lines += ["", "The run's own notes:", "", *(f"- {cell(each)}" for each in notes)]
    return lines


def _files(stamps: Mapping[str, Stamp], checked: Mapping[str, float], batches: Sequence[int]) -> list[str]:
    rows = [(name, words.count(each.bytes), each.sha256) for name, each in sorted(stamps.items())]
    sizes = ", ".join(map(str, batches))
    within = "; ".join(
        f"{name}: {'equal to the bit' if not share else f'within {share:g} of the largest score'}"
        for name, share in checked.items()
    )
    return [
        *table(["file", "bytes", "SHA-256"], rows),
        "",
        "`manifest.json` holds the hashes of these files and of this card; `tpsprune.load` checks them all.",
        "",
        f"Each format was reloaded from its files and held against the run's ticket on random inputs in "
        f"batches of {sizes}: {within}.",
    ]


def _made(raw: Mapping[str, Any]) -> list[str]:
    versions = field(raw, "versions") or {}
    machine = field(raw, "machine") or {}
    facts = {**{name: machine[name] for name in sorted(machine)}, **versions}
    rows = [("device", said(field(raw, "device"))), *facts.items()]
    return table(["", ""], rows)


def _kind(recipe_text: str) -> str:
    """Return the kind of the recipe's model; nothing where the text tells none."""
    import tomllib

    try:
        return str(tomllib.loads(recipe_text)["task"]["model"]["kind"])
    except (tomllib.TOMLDecodeError, KeyError, TypeError):
        return ""
