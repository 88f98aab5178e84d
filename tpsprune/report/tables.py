"""Tables for a terminal of 80 columns: a finished run, its signals over the epochs, a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import fmean, mean, stdev
from typing import Any, Final

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tpsprune.records import (
    GIVEN,
    Decision,
    FamilyMember,
    FamilyResult,
    GroupChange,
    Latency,
    Pruned,
    Reading,
    Repaired,
    RunResult,
    Savings,
    Transferred,
    Unpruned,
)
from tpsprune.report import words
from tpsprune.report.savings.terms import class_of, standing_words, tone_of
from tpsprune.report.savings.view import Headline, format_grade, format_needed, headlines

MAX_ROWS: Final = 24
"""Groups shown in full; of a longer table the middle is left out, with a line for the rest."""
BLOCKS: Final = "▁▂▃▄▅▆▇█"
BLOCK_COLUMNS: Final = 28
MISSING: Final = "·"
RIGHT: Final = {"justify": "right"}
WHOLE: Final = {"no_wrap": True}
FAMILY_HEAD: Final = (
    "size",
    "quality",
    "MACs",
    "params",
    "file",
    "batch 1",
    "batch 64",
    "answer",
    "rival",
    "",
)
TONES: Final = {"saves": "bold green", "costs": "bold red", "refused": "bold yellow"}


def widths_table(groups: Sequence[GroupChange], title: str = "Widths") -> Table:
    """Return the table of units per group before and after pruning; heads and the like are named."""
    by_rank = any(group.effective_rank is not None for group in groups)
    headings = ["before", "after", "kept", *(["effective rank"] if by_rank else []), "residual"]
    table = make_table({"group": fold(34), **dict.fromkeys(headings, RIGHT)}, title)
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


def decision_text(decision: Decision) -> Text:
    """Return what was decision_text and why; handed-in weights are no decision of the run."""
    if decision.rule == GIVEN:
        return Text(_capital(decision.reason))
    act = {"draw": "Draw", "stop": "End"}[decision.kind]
    return Text.assemble((act, "bold"), f" at epoch {decision.epoch:g}: {decision.reason}")


def prune_line(pruned: Pruned) -> str:
    """Return in one sentence what pruning kept and what it cost."""
    error = (
        ""
        if pruned.output_error is None
        else f"; output error on the calibration data {pruned.output_error:.3g}"
    )
    return (
        f"MACs kept {pruned.macs_share:.3f}, parameters kept {pruned.parameters_share:.3f}{error}; "
        f"validation {pruned.quality} {pruned.validation_accuracy_before:.4f} before pruning, "
        f"{pruned.validation_accuracy_after:.4f} right after it"
    )


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def left_alone_lines(items: Sequence[Unpruned]) -> list[str]:
    """Return one line per thing that was not pruned, with the reason."""
    return [f"{item.name}: {item.reason}" for item in items]


def _models_table(outcome: RunResult) -> Table:
    """Return dense and ticket: accuracy, parameters, MACs, latency with its quartiles, file size."""
    dense, ticket = outcome.dense, outcome.ticket
    given = "dense, as given" if outcome.was_given else "dense, at the draw"
    table = make_table({"": {}, given: RIGHT, "ticket": RIGHT, "ticket/dense": RIGHT})
    table.add_row(f"test {outcome.task.quality}", f"{dense.accuracy:.4f}", f"{ticket.accuracy:.4f}", "")
    for name, before, after, show in (
        ("parameters", dense.parameters, ticket.parameters, words.count),
        ("MACs per item", dense.macs, ticket.macs, words.count),
        ("file size", dense.bytes, ticket.bytes, words.bytes_),
    ):
        table.add_row(name, show(before), show(after), _share(after, before))
    for name, slow in dense.latency_seconds.items():
        quick = ticket.latency_seconds[name]
        table.add_row(
            f"latency, {name.replace('-', ' ')}",
            _latency(slow),
            _latency(quick),
            _share(quick.median_seconds, slow.median_seconds),
        )
    return table


def _share(after: float, before: float) -> str:
    return words.share(after / before) if before else "–"


def _latency(latency: Latency) -> str:
    spread = (latency.upper_quartile_seconds - latency.lower_quartile_seconds) / 2
    return f"{words.seconds(latency.median_seconds)} ±{words.seconds(spread)}"


def _energy_table(outcome: RunResult) -> Table:
    """Return joules and seconds by phase, each with its class, the total, and the projection."""
    table = make_table({"phase": {}, "energy": RIGHT, "time": RIGHT, "CPU time": RIGHT, "class": {}})
    rows: list[tuple[str, Any, str]] = [
        (name, each, str(each.energy_class) + ("" if each.valid else " (invalid windows)"))
        for name, each in outcome.energy.items()
    ]
    rows.append(("total", outcome.total, _class_of_total(outcome)))
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
    """Return the run folder and the two commands to type next: lines to copy, never to be broken."""
    picture = Path(outcome.folder, "signals.png")
    return [
        f"Run folder: {outcome.folder}",
        *([f"Picture:    {picture}"] if picture.is_file() else []),
        "Next:",
        f"  tpsprune show {outcome.folder}",
        f"  tpsprune export {outcome.folder} --to tickets/{outcome.name}",
    ]


def whole_run(outcome: RunResult) -> RenderableType:
    """Return the decisions, the pruning and the results of a run."""
    return Lines(
        decision_text(outcome.drawn),
        widths_table(outcome.groups),
        *[Text(f"left alone  {line}") for line in left_alone_lines(outcome.unpruned)],
        decision_text(outcome.stopped),
        Text(""),
        closing(outcome),
    )


def _class_of_total(outcome: RunResult) -> str:
    classes = {str(phase.energy_class) for phase in outcome.energy.values() if phase.joules}
    return classes.pop() if len(classes) == 1 else "mixed" if classes else "none"


def closing(outcome: RunResult) -> RenderableType:
    """Return the results of a finished run, without the commands to type next."""
    classes = ", ".join(f"{part} {kind}" for part, kind in outcome.method.classes.items()) or "nothing"
    where = [outcome.device, *_processes(outcome.machine)]
    return Lines(
        Text(" · ".join([outcome.name, f"seed {outcome.seed}", *where]), style="bold"),
        _models_table(outcome),
        Text(""),
        _energy_table(outcome),
        Text(""),
        Text(f"Energy by {outcome.method.meter}, {outcome.method.scope}: {classes}."),
        *[Text(sentence) for sentence in _caveats(outcome)],
        *[Text(f"Note: {note}") for note in outcome.notes],
    )


def _processes(machine: Mapping[str, Any]) -> list[str]:
    """Return in how many processes each attempt ran, and the shards of its batches, where there were any."""
    if "processes" not in machine:
        return []
    attempts = ", then ".join(str(each) for each in machine["processes"])
    return [f"{attempts} {'process' if attempts == '1' else 'processes'}, {machine['shards']} shards"]


def _caveats(outcome: RunResult) -> list[str]:
    """Return the caveats of the energy figures; none of training where there was none."""
    sentences = []
    if outcome.projected_dense is not None:
        sentences.append(
            "'dense to the end' projects training and evaluation from the dense epochs of this run: no "
            "measurement, and without set-up and benchmark. A saving takes paired runs to claim."
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


@dataclass(frozen=True, slots=True)
class RunSignals:
    """The signals of one run: by name the epochs and values, none where there was none; the draw, the end."""

    title: str
    series: Mapping[str, tuple[tuple[float, float | None], ...]]
    drawn_epoch: float
    end_epoch: float


def collect_signals(outcome: RunResult, readings: Sequence[Reading]) -> RunSignals:
    """Return the signals of the whole model in a run's journal; validation quality under its own name."""
    found = outcome.task.quality
    quality = "validation_accuracy" if found == "accuracy" else found
    series: dict[str, list[tuple[float, float | None]]] = {}
    for reading in readings:
        if not reading.group:
            name = quality if reading.signal == "validation_accuracy" else reading.signal
            series.setdefault(name, []).append((reading.epoch, reading.value))
    title = f"{Path(outcome.folder).name}, seed {outcome.seed}"
    points = {name: tuple(each) for name, each in series.items()}
    return RunSignals(title, points, outcome.drawn.epoch, outcome.stopped.epoch)


def spark(values: Sequence[float | None], low: float, high: float) -> str:
    """Return a block for each value, from the lowest at ``low`` to the highest at ``high``; a dot for none.

    >>> spark([0.0, None, 0.5, 1.0], 0.0, 1.0)
    '▁·▅█'
    """
    span = high - low
    steps = len(BLOCKS) - 1
    return "".join(
        MISSING if value is None else BLOCKS[round(steps * (value - low) / span) if span else steps // 2]
        for value in values
    )


def signals_table(runs: Sequence[RunSignals]) -> RenderableType:
    """Return the signals of one run, or of two on the same scale and the same epochs, with their numbers.

    Of the readings that fall on one block the mean is shown. Marks above the lines: D the draw, E the end.
    """
    last = max((run.end_epoch for run in runs), default=0.0)
    most = max((len(points) for run in runs for points in run.series.values()), default=1)
    columns = max(1, min(BLOCK_COLUMNS, most))
    numbers = {heading: {**RIGHT, **WHOLE} for heading in ("first", "at draw", "last")}
    which = {"": WHOLE} if len(runs) > 1 else {}
    table = make_table({"signal": WHOLE, **which, f"epoch 0 to {last:g}": WHOLE, **numbers})
    letters = "AB"[: len(runs)]
    for letter, run in zip(letters, runs, strict=True):
        table.add_row("", *([letter] if which else []), _marks(run, last, columns), "", "", "")
    for name in dict.fromkeys(name for run in runs for name in run.series):
        binned = [_binned(run.series.get(name, ()), last, columns) for run in runs]
        seen = [value for values in binned for value in values if value is not None]
        low, high = (min(seen), max(seen)) if seen else (0.0, 0.0)
        for rank, (letter, run, values) in enumerate(zip(letters, runs, binned, strict=True)):
            table.add_row(
                name if rank == 0 else "",
                *([letter] if which else []),
                spark(values, low, high),
                *_numbers(run.series.get(name, ()), run.drawn_epoch),
            )
    titles = [f"{letter}  {run.title}" for letter, run in zip(letters, runs, strict=True)]
    titles = titles if len(runs) > 1 else [run.title for run in runs]
    note = f"D drawn, E the end; {MISSING} no value; each line from its lowest to its highest"
    return Lines(*map(Text, titles), table, Text(note, style="dim"))


def _column(epoch: float, last: float, columns: int) -> int:
    # A reading at the end of an epoch is of that epoch.
    return min(columns - 1, max(0, ceil(columns * epoch / last - 1e-9) - 1)) if last else 0


def _marks(run: RunSignals, last: float, columns: int) -> str:
    marks = [" "] * columns
    marks[_column(run.end_epoch, last, columns)] = "E"
    marks[_column(run.drawn_epoch, last, columns)] = "D"
    return "".join(marks).rstrip()


def _binned(points: Sequence[tuple[float, float | None]], last: float, columns: int) -> list[float | None]:
    held: list[list[float]] = [[] for _ in range(columns)]
    for epoch, value in points:
        if value is not None:
            held[_column(epoch, last, columns)].append(value)
    return [fmean(each) if each else None for each in held]


def _numbers(points: Sequence[tuple[float, float | None]], drawn_epoch: float) -> list[str]:
    values = [value for _, value in points if value is not None]
    before = [value for epoch, value in points if value is not None and epoch <= drawn_epoch]
    return [f"{found[0]:.3g}" if found else "" for found in (values[:1], before[-1:], values[-1:])]


def savings_summary(savings: Savings) -> RenderableType:
    """Return the result of a comparison for a terminal; without one it is text without markup."""
    verdict, grade, quality = savings.verdict, savings.grade, savings.comparison.design.quality
    blocks: list[RenderableType] = [
        Text(savings.answer.statement),
        Text(""),
        Text.assemble(
            (standing_words(verdict.standing, quality), TONES[tone_of(verdict.standing)]),
            f"  {verdict.standing.value}, grade {format_grade(grade.letter)} ({grade.meaning})",
        ),
        Text(verdict.statement),
        Text(""),
        *(Text(line) for each in headlines(savings) for line in _number(each)),
        Text(""),
        _arms_table(savings),
    ]
    if verdict.reasons:
        blocks += [Text(""), *(Text(f"{each.code}: {each.detail}") for each in verdict.reasons)]
    blocks += [Text(f"May be claimed: {each}") for each in savings.may_claim]
    blocks += [Text(f"Not to be claimed: {each}") for each in savings.may_not_claim]
    if savings.needed:
        wanted = ", ".join(
            f"{words.percent(each.saving_share)} takes {format_needed(each.pairs)}" for each in savings.needed
        )
        blocks.append(Text(f"Pairs needed to see a saving at this noise: {wanted}."))
    if not savings.complete:
        blocks.append(Text(f"Not complete: {savings.comparison.under_way or 'pairs are missing'}."))
    return Lines(*blocks)


def _number(headline: Headline) -> list[str]:
    """Return a number and below it its interval, whose class is written where it is another."""
    own, interval = headline.kind, headline.interval
    figure = f"{headline.title + ':':22} {headline.figure.text}{f' [{own}]' if own else ''}"
    if not interval.text:
        return [figure]
    of_class = f" [{interval.kind}]" if interval.has_figure and interval.kind != headline.figure.kind else ""
    return [figure, f"{'':22} {interval.text}{of_class}"]


def _arms_table(savings: Savings) -> Table:
    """Return a row for each arm: what its training took with its deviation, and the change."""
    quality = savings.comparison.design.quality
    table = make_table({"arm": fold(14), **dict.fromkeys((quality, "energy", "±", "change"), RIGHT)})
    kinds = {class_of(savings, run.energy_class) for run in savings.runs if run.counted}
    if len(kinds) > 1:
        table.add_column("class", **fold(20))
    else:
        table.caption, table.caption_justify = f"Energy: {kinds.pop() if kinds else 'none'}.", "left"
    claims = {claim.arm: claim for claim in reversed(savings.claims) if claim.kind == "training"}
    for arm in savings.comparison.design.arms:
        counted = [run for run in savings.runs if run.arm == arm and run.counted]
        joules = [run.joules for run in counted if run.joules is not None]
        accuracies = [run.accuracy for run in counted if run.accuracy is not None]
        change = claims[arm].change if arm in claims else None
        row = (
            arm,
            f"{mean(accuracies):.4f}" if accuracies else "–",
            words.joules(mean(joules) if joules else None),
            words.joules(stdev(joules)) if len(joules) > 1 else "–",
            words.change(change.saving_share) if change else "–",
            ", ".join(sorted({class_of(savings, run.energy_class) for run in counted})) or "none",
        )
        table.add_row(*row[: len(table.columns)])
    return table


def repaired_table(found: Repaired) -> Table:
    """Return the dense model, what another tool has made of it, and the ticket fitted anew."""
    table = make_table({"": WHOLE, f"test {found.quality}": RIGHT, "MACs": RIGHT, "parameters": RIGHT})
    shares = (words.share(found.macs_share), words.share(found.parameters_share))
    table.add_row("dense", f"{found.dense:.4f}", "1.00", "1.00")
    table.add_row("as it was pruned", f"{found.pruned:.4f}", *shares)
    table.add_row("fitted to the dense model", f"{found.ticket:.4f}", *shares)
    table.caption = f"finding, fitting, repairing and evaluating took {words.joules(found.total.joules)}"
    table.caption_justify = "left"
    return table


def transferred_table(found: Transferred) -> Table:
    """Return test quality and parameters trained of a frozen encoder, cut or not, and each part's cost."""
    table = make_table(
        {"": WHOLE, f"test {found.quality}": RIGHT, "trained": RIGHT, "time": RIGHT, "energy": RIGHT}
    )
    trained = f"{found.trained_parameters:,}"
    table.add_row("frozen encoder", f"{found.encoder:.4f}", trained, "", "")
    if found.ticket is not None:
        cut = f"cut to {words.share(found.macs_share)} of the MACs"
        table.add_row(cut, f"{found.ticket:.4f}", trained, "", "")
    for part, cost in found.parts.items():
        table.add_row(part, "", "", words.seconds(cost.seconds), words.joules(cost.joules))
    table.add_row("all", "", "", words.seconds(found.total.seconds), words.joules(found.total.joules))
    table.caption = f"of {found.parameters:,} parameters {trained} were trained"
    table.caption_justify = "left"
    return table


def member_line(member: FamilyMember, quality: str) -> str:
    """Return a size of a family in a line, as it is measured."""
    refused = f"; refused: {member.refused}" if member.refused else ""
    return f"size {member.size:g}: test {quality} {member.figures.accuracy:.4f}{refused}"


def family_table(family: FamilyResult) -> Table:
    """Return the sizes of a family beside the dense model; the page has more columns."""
    title = f"{family.name}: {len(family.members)} sizes by {family.by} · {family.device}"
    shown = ("size", "quality", "MACs", "params", "batch 64", "answer", "rival", "")
    table = make_table({each: {**RIGHT, **WHOLE} if each else WHOLE for each in shown}, title)
    for member in (family.dense, *family.members):
        cells = dict(zip(FAMILY_HEAD, member_cells(family, member), strict=True))
        table.add_row(*(cells[each] for each in shown))
    return table


def member_cells(family: FamilyResult, member: FamilyMember) -> tuple[str, ...]:
    """Return a row: what a size is asked for, what it has, and what speaks against it.

    Latencies are medians; *rival* is torch-pruning's magnitude at the same multiply-accumulates.
    """
    figures, dense = member.figures, family.dense.figures
    is_dense = member is family.dense
    remark = "refused" if member.refused else "dominated" if not is_dense and family.dominated(member) else ""
    return (
        "dense" if is_dense else f"{member.size:g}",
        f"{figures.accuracy:.4f}",
        words.share(figures.macs / dense.macs),
        words.share(figures.parameters / dense.parameters),
        words.bytes_(figures.bytes),
        *(words.seconds(each.median_seconds) for each in figures.latency_seconds.values()),
        words.small_joules(member.joules_per_answer),
        "" if member.rival_accuracy is None else f"{member.rival_accuracy:.4f}",
        remark,
    )


def make_table(columns: Mapping[str, Mapping[str, Any]], title: str | None = None) -> Table:
    """Return an empty table without lines: by heading how each column is set."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading, options in columns.items():
        table.add_column(heading, **options)
    return table


def fold(width: int | None) -> dict[str, Any]:
    """Return how a column is set that is at most so wide, and breaks long words."""
    return {"overflow": "fold", "max_width": width}
