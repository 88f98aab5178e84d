"""What ``check`` found, in words and tables: data, model, groups, widths, every layer; 80 columns wide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tpsprune.records import Checked, CheckedLayer, TaskFacts
from tpsprune.report import words
from tpsprune.report.tables import left_alone_lines

__all__ = ["checked"]


def checked(found: Checked) -> RenderableType:
    """Return what a check found: task, size, what can be pruned and what cannot and why."""
    task = found.task
    items = ", ".join(f"{words.count(number)} {split}" for split, number in found.items.items())
    return Lines(
        Text(f"{found.name} on {found.device}: the recipe is sound", style="bold"),
        Text(f"data    {items} items; {_inputs(task)}, {task.classes} {_answers(task)}"),
        Text(f"model   {words.count(found.parameters)} parameters, {words.count(found.macs)} MACs per item"),
        *[Text(f"        {line}") for line in _from_data(found)],
        Text(f"train   {words.count(found.steps_per_epoch)} steps per epoch"),
        Text(f"target  {found.target}, which this model can reach"),
        *[Text(line) for line in _widths_lines(found)],
        Text(""),
        _groups_table(found),
        Text(""),
        _layers_table(found),
        *([Text(""), Text("Left alone", style="italic")] if found.left_alone else []),
        *[Text(line) for line in left_alone_lines(found.left_alone)],
    )


def _inputs(task: TaskFacts) -> str:
    """Return what one input is: a kind and a shape, or the name and shape of each part."""
    if not task.parts:
        return f"{task.input_kind} {_shape(task.input_shape)}"
    return " + ".join(
        f"{part.name or place} {_shape(part.shape) or 'one'} {part.dtype}"
        for place, part in enumerate(task.parts)
    )


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _answers(task: TaskFacts) -> str:
    """Return what the numbers of an answer stand for."""
    words = {"mse": "target", "bce": "label", "next-token": "token", "cross-entropy": "classes"}
    word = words.get(task.loss, "number")
    return word if task.classes == 1 or word == "classes" else f"{word}s"


def _from_data(found: Checked) -> list[str]:
    if not found.from_data:
        return []
    told = ", ".join(f"{name} = {value}" for name, value in found.from_data.items())
    return [f"from the data: {told}"]


def _widths_lines(found: Checked) -> list[str]:
    lines = [f"weights {found.weights.removeprefix('weights ')}"]
    if found.cost_share is None:
        return [*lines, "widths  not looked at (--no-widths)"]
    once = f" in one cut (the recipe goes there in {found.rounds})" if found.rounds > 1 else ""
    unit = "parameters" if found.target.startswith("params") else "MACs"
    lines.append(
        f"widths  {found.cost_share:.3f} of the {unit}{once}; they follow from the weights looked at"
    )
    if not found.trained:
        lines.append("        untrained: a trained model (--weights F) would keep other widths")
    return lines


def _groups_table(found: Checked) -> Table:
    table = Table(title="Can be pruned", title_justify="left", box=None, pad_edge=False)
    table.add_column("group", overflow="fold", max_width=17)
    table.add_column("holds", justify="right", no_wrap=True)
    foreseen = found.cost_share is not None
    if foreseen:
        table.add_column("stay", justify="right", no_wrap=True)
    for heading in ("put out by", "along with", "read by"):
        table.add_column(heading, overflow="fold", max_width=15)
    for group in found.groups:
        table.add_row(
            group.name,
            f"{group.width} {group.kind}",
            *([str(group.width_after)] if foreseen else []),
            _few(group.layers),
            _few(group.members),
            _few(group.readers),
        )
    return table


def _layers_table(found: Checked) -> Table:
    table = Table(title="Every layer", title_justify="left", box=None, pad_edge=False)
    table.add_column("layer", overflow="fold", max_width=26)
    table.add_column("kind", overflow="fold", max_width=14)
    table.add_column("of MACs", justify="right", no_wrap=True)
    table.add_column("what a cut does to it", overflow="fold", max_width=34)
    after = {group.name: (group.width, group.width_after) for group in found.groups}
    for layer in found.layers:
        table.add_row(layer.name, layer.kind, words.share(layer.macs_share), _fate(layer, after))
    return table


def _fate(layer: CheckedLayer, widths: Mapping[str, tuple[int, int | None]]) -> str:
    groups = ", ".join(_left(name, *widths[name]) for name in layer.groups)
    match layer.fate:
        case "cut":
            told = f"puts out {groups}"
        case "follows":
            told = f"follows {groups}"
        case "stays":
            told = f"keeps its units: {layer.reason}"
    return f"{told}; reads {_few(layer.reads)}" if layer.reads else told


def _left(group: str, width: int, after: int | None) -> str:
    return group if after is None else f"{group} ({after} of {width} stay)"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, {names[1]} and {len(names) - 2} more"
