"""The tables of a run: widths before and after, dense beside ticket, energy by phase. 80 columns wide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tpsprune.records import GIVEN, Cost, Decision, GroupChange, Latency, LeftAlone, Pruned, RunResult
from tpsprune.report import words

__all__ = [
    "closing",
    "cut_line",
    "decided",
    "energy_table",
    "left_alone_lines",
    "models_table",
    "next_lines",
    "whole_run",
    "widths_table",
]

MAX_ROWS = 24
"""Groups shown in full; of a longer table the middle is left out, with a line that says so."""


def widths_table(groups: Sequence[GroupChange], title: str = "Widths") -> Table:
    """Return the table of units per group before and after the cut; heads and the like are named."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("group", overflow="fold", max_width=34)
    by_rank = any(group.effective_rank is not None for group in groups)
    headings = ["before", "after", "kept", *(["effective rank"] if by_rank else []), "residual"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for group in _middle_left_out(groups):
        if group is None:
            table.add_row(f"… {len(groups) - MAX_ROWS} more, in plan.json", *[""] * len(headings))
            continue
        rank = "" if group.effective_rank is None else f"{group.effective_rank:.1f}"
        table.add_row(
            group.group if group.kind == "units" else f"{group.group} ({group.kind})",
            str(group.width_before),
            str(group.width_after),
            words.share(group.width_after / group.width_before),
            *([rank] if by_rank else []),
            "" if group.residual_share is None else f"{group.residual_share:.3f}",
        )
    return table


def _middle_left_out(groups: Sequence[GroupChange]) -> list[GroupChange | None]:
    if len(groups) <= MAX_ROWS:
        return list(groups)
    half = MAX_ROWS // 2
    return [*groups[:half], None, *groups[-half:]]


def decided(decision: Decision) -> Text:
    """Return what was decided and why; weights that were given were no decision of ours."""
    if decision.rule == GIVEN:
        return Text(_capital(decision.reason))
    act = {"draw": "Draw", "stop": "End"}[decision.kind]
    return Text.assemble((act, "bold"), f" at epoch {decision.epoch:g}: {decision.reason}")


def cut_line(pruned: Pruned) -> str:
    """Return in one sentence what a cut kept and what it cost."""
    error = "" if pruned.output_error is None else f"; output error on the probe {pruned.output_error:.3g}"
    return (
        f"MACs kept {pruned.macs_share:.3f}, parameters kept {pruned.parameters_share:.3f}{error}; "
        f"validation {pruned.quality} {pruned.validation_accuracy_before:.4f} before the cut, "
        f"{pruned.validation_accuracy_after:.4f} straight after it"
    )


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def left_alone_lines(items: Sequence[LeftAlone]) -> list[str]:
    """Return one line per thing that was not cut, with the reason."""
    return [f"{item.name}: {item.reason}" for item in items]


def models_table(outcome: RunResult) -> Table:
    """Return dense beside ticket: accuracy, parameters, MACs, latency with its quartiles, file size."""
    dense, ticket = outcome.dense, outcome.ticket
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    given = "dense, as given" if outcome.was_given else "dense, at the draw"
    for heading in (given, "ticket", "ticket/dense"):
        table.add_column(heading, justify="right")
    table.add_row(f"test {outcome.task.quality}", f"{dense.accuracy:.4f}", f"{ticket.accuracy:.4f}", "")
    for name, before, after, show in (
        ("parameters", dense.parameters, ticket.parameters, words.count),
        ("MACs per item", dense.macs, ticket.macs, words.count),
        ("file size", dense.bytes, ticket.bytes, words.bytes_),
    ):
        table.add_row(name, show(before), show(after), words.share(after / before))
    for name, slow in dense.latency_seconds.items():
        quick = ticket.latency_seconds[name]
        table.add_row(
            f"latency, {name.replace('-', ' ')}",
            _latency(slow),
            _latency(quick),
            words.share(quick.median_seconds / slow.median_seconds),
        )
    return table


def _latency(latency: Latency) -> str:
    spread = (latency.upper_quartile_seconds - latency.lower_quartile_seconds) / 2
    return f"{words.seconds(latency.median_seconds)} ±{words.seconds(spread)}"


def energy_table(outcome: RunResult) -> Table:
    """Return joules and seconds by phase, each with its class, the total, and the projection."""
    table = Table(box=None, pad_edge=False)
    table.add_column("phase")
    for heading in ("energy", "time", "CPU time"):
        table.add_column(heading, justify="right")
    table.add_column("class")
    for name, phase in outcome.energy.items():
        energy_class = str(phase.energy_class) + ("" if phase.valid else " (invalid windows)")
        table.add_row(
            name,
            words.joules(phase.joules),
            words.seconds(phase.seconds),
            words.seconds(phase.cpu_seconds),
            energy_class,
        )
    rows: list[tuple[str, Cost, str]] = [("total", outcome.total, _class_of_total(outcome))]
    if outcome.projected_dense is not None:
        rows.append(("dense to the end", outcome.projected_dense, "projection"))
    for name, cost, energy_class in rows:
        table.add_row(
            name,
            words.joules(cost.joules),
            words.seconds(cost.seconds),
            words.seconds(cost.cpu_seconds),
            energy_class,
            style="bold" if name == "total" else "",
        )
    return table


def next_lines(outcome: RunResult) -> list[str]:
    """Return where the run lies and the two commands to type next: lines to copy, never to be broken."""
    picture = Path(outcome.folder, "signals.png")
    return [
        f"Run folder: {outcome.folder}",
        *([f"Picture:    {picture}"] if picture.is_file() else []),
        "Next:",
        f"  tpsprune show {outcome.folder}",
        f"  tpsprune export {outcome.folder} --to tickets/{outcome.name}",
    ]


def whole_run(outcome: RunResult) -> RenderableType:
    """Return what a run decided, cut and came to: all that was shown while it ran, once more."""
    return Lines(
        decided(outcome.drawn),
        widths_table(outcome.groups),
        *[Text(f"left alone  {line}") for line in left_alone_lines(outcome.left_alone)],
        decided(outcome.stopped),
        Text(""),
        closing(outcome),
    )


def _class_of_total(outcome: RunResult) -> str:
    classes = {str(phase.energy_class) for phase in outcome.energy.values() if phase.joules}
    return classes.pop() if len(classes) == 1 else "mixed" if classes else "none"


def closing(outcome: RunResult) -> RenderableType:
    """Return everything a finished run has to say but what to type next."""
    classes = ", ".join(f"{part} {kind}" for part, kind in outcome.method.classes.items()) or "nothing"
    return Lines(
        Text(f"{outcome.name} · seed {outcome.seed} · {outcome.device}", style="bold"),
        models_table(outcome),
        Text(""),
        energy_table(outcome),
        Text(""),
        Text(f"Energy by {outcome.method.meter}, {outcome.method.scope}: {classes}."),
        *[Text(sentence) for sentence in _caveats(outcome)],
        *[Text(f"Note: {note}") for note in outcome.notes],
    )


def _caveats(outcome: RunResult) -> list[str]:
    """Return what a reader must know of the figures of energy; nothing of training where there was none."""
    sentences = []
    if outcome.projected_dense is not None:
        sentences.append(
            "'dense to the end' projects training and evaluation from the dense epochs of this run: no "
            "measurement, and without setting up and weighing. A saving takes paired runs to claim."
        )
    else:
        sentences.append("What the training of the dense model cost is not known here.")
    if any(value is not None for value in outcome.overhead.values()):
        overhead = ", ".join(
            f"{name} {value:.1%}" if value is not None else f"{name} unknown"
            for name, value in outcome.overhead.items()
        )
        sentences.append(f"Share of the training CPU time: {overhead}.")
    return sentences
