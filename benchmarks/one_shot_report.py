"""The page of the one-shot benchmark, from its rows alone: the same rows give the same page."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.one_shot_cuts import TEST_ITEMS
from benchmarks.one_shot_heal import CUT, HEALED, MAGNITUDE_TRAINED, OURS_TRAINED
from benchmarks.one_shot_methods import default_widths
from benchmarks.one_shot_rows import Row
from benchmarks.one_shot_speed import BATCHES, speed_method
from benchmarks.one_shot_table import cell, dense_cell, net_table, problems, verdicts, worst_miss
from benchmarks.zoo.tasks import TASKS

__all__ = ["BARS", "TIME", "Setting", "page"]

TIME = "resnet50"
BARS = (
    *(("digits", 0.5, 0.2), ("digits", 0.25, 1.0), ("fashion", 0.5, 0.2), ("fashion", 0.25, 1.0)),
    *(("mnist", 0.5, 0.2), ("mnist", 0.25, 1.0), ("vit", 0.5, 0.2), ("vit", 0.25, 2.0)),
    *(("resnet8", 0.5, 2.0), ("resnet8", 0.25, 5.0)),
)
"""Points that a cut may lose, with the repair; here as cut, with layers of low rank and without."""
PREAMBLE = f"""\
Test accuracy, mean ± standard deviation over seeds (of the training and of the probe drawn); at most
{TEST_ITEMS:,} test items, spread evenly. Same trained model, same probe data (1,024 training items without
labels; Taylor gets them too), same multiply-accumulates. A baseline's cell is the better of uniform
widths (u) and one global threshold (g), judged on seed 0's test items: in its favour. Its rows: cut by
torch-pruning's measure and left so; with batch-norm statistics taken anew; with our fold. *Model
folding* merges units that k-means finds alike (arXiv:2502.10216). *Low rank* has `low_rank = true`. Bold:
the default. A cell without ± is of seed 0 alone, and is held against ours on that seed.""".splitlines()
HEAL_WORDS = {
    CUT: "ours, as cut",
    HEALED: "ours, healed (probe, no labels)",
    OURS_TRAINED: "ours, trained (all, labels)",
    MAGNITUDE_TRAINED: "magnitude, trained (all, labels)",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What the benchmark was asked for, and where it ran."""

    command: str
    machine: str
    nets: tuple[str, ...]
    shares: tuple[float, ...]
    heal_steps: int


def page(rows: Sequence[Row], setting: Setting) -> str:
    """Return the whole report as Markdown."""
    lines = [
        "# Straight after the cut, no retraining",
        "",
        f"`{setting.command}` on {setting.machine}.",
        "",
        *PREAMBLE,
    ]
    lines += _bars(rows)
    for net in setting.nets:
        if dense_cell(rows, net) is not None:
            lines += _net(rows, net, setting)
    lines += _heal(rows, setting) + _speed(rows, setting) + _time(rows)
    return "\n".join(lines) + "\n"


def _net(rows: Sequence[Row], net: str, setting: Setting) -> list[str]:
    dense = dense_cell(rows, net)
    seeds = len(dense.scores) if dense else 0
    lines = ["", f"## {net}: {TASKS[net].title}", ""]
    if dense:
        lines += [f"Dense {dense.words}, {seeds} seed{'s' if seeds != 1 else ''}.", ""]
    lines += net_table(rows, net, setting.shares, default_widths())
    lines += ["", *_wrapped(verdicts(rows, net, setting.shares, default_widths()))]
    miss = worst_miss(rows, net)
    if miss is not None and miss.macs_share is not None:
        lines += [
            "",
            f"Farthest from its target: {miss.macs_share:.3f} for {miss.share:g} ({miss.method}).",
        ]
    said = problems(rows, net)
    return lines + (["", "Not cut:", "", *_wrapped(said)] if said else [])


def _bars(rows: Sequence[Row]) -> list[str]:
    lines = []
    for net, share, points in BARS:
        dense = dense_cell(rows, net)
        ours = [cell(rows, net, method, share) for method in (_default(), "interpolation/greedy/low rank")]
        if dense and any(ours):
            lost = [100 * (dense.mean - each.mean) if each else None for each in ours]
            shown = [
                "–" if each is None else f"{each:.2f}, {'met' if each <= points else '**not met**'}"
                for each in lost
            ]
            lines.append(f"| {net} | {share:g} | {points:g} | {' | '.join(shown)} |")
    if not lines:
        return []
    head = ["| net | kept | points allowed | lost | with low rank |", "| --- | --- | --- | --- | --- |"]
    return ["", "## Bars", "", *head, *lines]


def _heal(rows: Sequence[Row], setting: Setting) -> list[str]:
    lines = []
    for net in setting.nets:
        for method, words in HEAL_WORDS.items():
            cells = [cell(rows, net, method, share) for share in setting.shares]
            if any(cells):
                shown = " | ".join(each.words if each else "–" for each in cells)
                lines.append(f"| {net} | {words} | {shown} |")
    if not lines:
        return []
    shares = " | ".join(f"{share:g}" for share in setting.shares)
    return [
        "",
        f"## {setting.heal_steps} steps of repair",
        "",
        f"| net | | {shares} |",
        "| --- | --- |" + " --- |" * len(setting.shares),
        *lines,
    ]


def _speed(rows: Sequence[Row], setting: Setting) -> list[str]:
    lines = []
    for net in setting.nets:
        for device in ("cpu", "cuda"):
            for share in setting.shares:
                pair = [cell(rows, net, speed_method(device, batch), share) for batch in BATCHES]
                if any(pair):
                    times = " | ".join(f"{each.mean:.2f}" if each else "–" for each in pair)
                    lines.append(f"| {net} | {device} | {share:g} | {times} |")
    if not lines:
        return []
    return [
        "",
        "## Real speed: median time of a forward pass over the dense model's (seed 0; CPU: one thread)",
        "",
        "| net | device | MACs | batch 1 | batch 64 |",
        "| --- | --- | --- | --- | --- |",
        *lines,
    ]


def _time(rows: Sequence[Row]) -> list[str]:
    row = next((each for each in rows if each.net == TIME and each.more), None)
    if row is None:
        return []
    more = row.more
    parts = ", ".join(f"{name.replace('_', ' ')} {value:.1f} s" for name, value in more["parts"].items())
    return [
        "",
        f"## Extraction time: ResNet-50, 224², {more['images']} probe images, {more['device']}",
        "",
        f"Probe forward passes {more['probe_forward_seconds']:.1f} s, extraction "
        f"{more['extraction_seconds']:.1f} s: **{more['ratio']:.1f} times** (aim: 3), "
        f"{more['threads']} threads.",
        f"Peak resident memory {_gb(more['peak_bytes'])} (aim: 4 GB); {_gb(more['peak_bytes_forward'])} "
        f"after the plain forward passes, {_gb(more['peak_bytes_loaded'])} before them.",
        *([f"Parts: {parts}."] if parts else []),
    ]


def _default() -> str:
    return f"interpolation/{default_widths()}/fold"


def _wrapped(points: Sequence[str]) -> list[str]:
    return [line for point in points for line in textwrap.wrap(point, 100, subsequent_indent="  ")]


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
