"""The findings of ``check`` and ``doctor``, for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tpsprune.records import (
    Checked,
    CheckedLayer,
    Diagnosis,
    MachineFacts,
    MeteredPart,
    Remedy,
    SoftwareFacts,
    TaskFacts,
)
from tpsprune.report import words
from tpsprune.report.tables import RIGHT, WHOLE, fold, left_alone_lines, make_table

UNKNOWN = "unknown"


def check_tables(found: Checked) -> RenderableType:
    """Return the findings of a check: task, size, what can be pruned, and what cannot and why."""
    task = found.task
    items = ", ".join(f"{words.count(number)} {split}" for split, number in found.items.items())
    return Lines(
        Text(f"{found.name} on {found.device}: the recipe is sound", style="bold"),
        Text(f"data    {items} items; {_inputs(task)}, {task.classes} {_outputs(task)}"),
        Text(f"model   {words.count(found.parameters)} parameters, {words.count(found.macs)} MACs per item"),
        *[Text(f"        {line}") for line in _from_data(found)],
        Text(f"train   {words.count(found.steps_per_epoch)} steps per epoch"),
        Text(f"target  {found.target}, which this model can reach"),
        *[Text(line) for line in _widths_lines(found)],
        Text(""),
        _groups_table(found),
        Text(""),
        _layers_table(found),
        *([Text(""), Text("Left alone", style="italic")] if found.unpruned else []),
        *[Text(line) for line in left_alone_lines(found.unpruned)],
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


def _outputs(task: TaskFacts) -> str:
    """Return the name of an output's numbers."""
    terms = {
        "mse": "target",
        "reconstruction": "pixel",
        "bce": "label",
        "next-token": "token",
        "cross-entropy": "classes",
    }
    term = terms.get(task.loss, "number")
    return term if task.classes == 1 or term == "classes" else f"{term}s"


def _from_data(found: Checked) -> list[str]:
    if not found.from_data:
        return []
    return ["from the data: " + ", ".join(f"{name} = {value}" for name, value in found.from_data.items())]


def _widths_lines(found: Checked) -> list[str]:
    lines = [f"weights {found.weights.removeprefix('weights ')}"]
    if found.cost_share is None:
        return [*lines, "widths  not planned (--no-widths)"]
    once = f" in one round (the recipe takes {found.rounds})" if found.rounds > 1 else ""
    unit = {"params": "parameters", "bytes": "bytes"}.get(found.target.partition("=")[0], "MACs")
    lines.append(f"widths  {found.cost_share:.3f} of the {unit}{once}; planned from these weights")
    if not found.trained:
        lines.append("        untrained: a trained model (--weights F) would keep other widths")
    return lines


def _groups_table(found: Checked) -> Table:
    planned = found.cost_share is not None
    columns = {
        "group": fold(17),
        "holds": {**RIGHT, **WHOLE},
        **({"kept": {**RIGHT, **WHOLE}} if planned else {}),
    }
    names = dict.fromkeys(("producers", "along with", "consumers"), fold(15))
    table = make_table({**columns, **names}, "Can be pruned")
    for group in found.groups:
        table.add_row(
            group.name,
            f"{group.width} {group.kind}",
            *([str(group.width_after)] if planned else []),
            _few(group.layers),
            _few(group.members),
            _few(group.readers),
        )
    return table


def _layers_table(found: Checked) -> Table:
    columns = {"layer": fold(26), "kind": fold(14), "of MACs": {**RIGHT, **WHOLE}}
    table = make_table({**columns, "what pruning does to it": fold(34)}, "Every layer")
    after = {group.name: (group.width, group.width_after) for group in found.groups}
    for layer in found.layers:
        table.add_row(layer.name, layer.kind, words.share(layer.macs_share), _fate(layer, after))
    return table


def _fate(layer: CheckedLayer, widths: Mapping[str, tuple[int, int | None]]) -> str:
    groups = ", ".join(_left(name, *widths[name]) for name in layer.groups)
    match layer.fate:
        case "cut":
            fate = f"produces {groups}"
        case "follows":
            fate = f"follows {groups}"
        case "stays":
            fate = f"keeps its units: {layer.reason}"
    return f"{fate}; consumes {_few(layer.reads)}" if layer.reads else fate


def _left(group: str, width: int, after: int | None) -> str:
    return group if after is None else f"{group} ({after} of {width} kept)"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, {names[1]} and {len(names) - 2} more"


def diagnosis_tables(found: Diagnosis) -> RenderableType:
    """Return a diagnosis; lines to copy are never broken."""
    grade = f"Grade {found.grade or UNKNOWN}"
    parts: list[RenderableType] = [_parts(found.parts), Text("")] if found.parts else []
    return Lines(
        _facts(found.machine, found.software),
        Text(""),
        *parts,
        Text.assemble((grade, "bold"), f": {found.grade_meaning}"),
        *_remedies(found.remedies),
    )


def _facts(machine: MachineFacts, software: SoftwareFacts) -> Table:
    table = _facts_table()
    for name, fact in (
        ("cpu", f"{machine.cpu_model or UNKNOWN}, {_or_unknown(machine.logical_cpus)} logical CPUs"),
        ("ram", UNKNOWN if machine.ram_bytes is None else words.bytes_(machine.ram_bytes)),
        ("gpu", _gpus(machine)),
        ("virtual", _virtual(machine)),
        ("software", _software(software)),
    ):
        table.add_row(name, fact)
    return table


def _gpus(machine: MachineFacts) -> str:
    if machine.gpus is None:
        return UNKNOWN
    driver = f"; driver {machine.gpu_driver}" if machine.gpu_driver else ""
    return (", ".join(machine.gpus) or "none found") + driver


def _virtual(machine: MachineFacts) -> str:
    virtual = {True: "yes, by a hypervisor", False: "no", None: UNKNOWN}[machine.virtualised]
    return f"{virtual}; in a container" if machine.container else virtual


def _software(software: SoftwareFacts) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in software.versions.items())
    built = f"built for CUDA {software.torch_cuda}" if software.torch_cuda else "built without CUDA"
    device = "a CUDA device" if software.cuda_available else "no CUDA device"
    return f"{packages}; torch computes with {software.torch_threads} threads, {built}, {device}"


def _parts(parts: tuple[MeteredPart, ...]) -> Table:
    table = make_table({"part": WHOLE, "metered by": fold(None), "class": WHOLE})
    for part in parts:
        table.add_row(part.part, part.by, str(part.energy_class))
    return table


def _remedies(remedies: tuple[Remedy, ...]) -> Iterator[RenderableType]:
    if remedies:
        yield Text("")
        yield Text("To measure more", style="italic")
    width = max((len(remedy.place) for remedy in remedies), default=0)
    for remedy in remedies:
        table = _facts_table(width)
        table.add_row(remedy.place, remedy.found)
        table.add_row("", remedy.do)
        yield table
        for line in remedy.lines:
            yield Text(f"  {line}", no_wrap=True, overflow="ignore")


def _or_unknown(number: int | None) -> str:
    return UNKNOWN if number is None else str(number)


def _facts_table(width: int | None = None) -> Table:
    """Return an empty table of two columns without headings: a name and a fact."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, min_width=width)
    table.add_column(overflow="fold")
    return table
