"""From rows to tables of at most a hundred columns, and to the sentences that say who won."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.one_shot_cuts import DENSE
from benchmarks.one_shot_methods import BASELINES, FOLDING, MENDS, OURS, Method, method_of
from benchmarks.one_shot_rows import Row

WIDTH_MARKS = {"uniform": "u", "global-magnitude": "g"}


@dataclass(frozen=True, slots=True)
class Cell:
    """Mean and standard deviation over seeds of one method at one share."""

    method: str
    scores: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.scores)

    @property
    def words(self) -> str:
        """The cell as it stands in a table: mean ± standard deviation."""
        spread = f" ±{statistics.stdev(self.scores):.3f}" if len(self.scores) > 1 else ""
        return f"{self.mean:.3f}{spread}"


def cell(rows: Iterable[Row], net: str, method: str, share: float) -> Cell | None:
    """Return the mean of what was measured, or nothing where nothing was."""
    found = [
        (row.score, row.seed)
        for row in rows
        if row.net == net and row.method == method and row.share == share and row.score is not None
    ]
    scores, seeds = tuple(score for score, _ in found), tuple(seed for _, seed in found)
    return Cell(method, scores, seeds) if found else None


def beaten(rows: Iterable[Row], net: str, method: Method, share: float) -> bool:
    """Return whether the same baseline did better with its other widths: ties go to uniform ones.

    Seed 0 alone decides, however far the others have come.
    """
    if method.ours:
        return False
    found = settled_cell(rows, net, method.units, method.mend, share)
    return found is not None and method_of(found.method).widths != method.widths


def settled_cell(rows: Iterable[Row], net: str, units: str, mend: str, share: float) -> Cell | None:
    """Return a baseline's cell over all seeds, with the widths that did better on seed 0."""
    rows = list(rows)
    first = [row for row in rows if row.seed == 0]
    best = _best_cell(first, net, [f"{units}/{widths}/{mend}" for widths in WIDTH_MARKS], share)
    return best and cell(rows, net, best.method, share)


def dense_cell(rows: Sequence[Row], net: str) -> Cell | None:
    """Return the dense model's accuracy."""
    return cell(rows, net, DENSE, 1.0)


def _best_cell(rows: Sequence[Row], net: str, methods: Sequence[str], share: float) -> Cell | None:
    """Return the best of several methods by its mean over seeds: chosen on the test split, so in favour."""
    cells = [found for method in methods if (found := cell(rows, net, method, share)) is not None]
    return max(cells, key=lambda each: each.mean, default=None)


def net_table(rows: Sequence[Row], net: str, shares: Sequence[float], default: str) -> list[str]:
    """Return the table of one net: ours by how widths are shared out, each baseline by how it is mended.

    A baseline's cell is with the widths that were better on seed 0: uniform (u) or one global threshold (g).
    """
    lines = [_line("kept multiply-accumulates", [f"{share:g}" for share in shares])]
    lines.append(_line("---", ["---"] * len(shares)))
    for widths in OURS:
        cells = [cell(rows, net, f"interpolation/{widths}/fold", share) for share in shares]
        if any(cells):
            name = f"**ours, {widths}**" if widths == default else f"ours, {widths}"
            lines.append(_line(name, [each.words if each else "–" for each in cells]))
    for name, method in (
        ("ours, greedy, low rank", "interpolation/greedy/low rank"),
        ("model folding + batch norm", f"{FOLDING}/uniform/batch norm"),
    ):
        cells = [cell(rows, net, method, share) for share in shares]
        if any(cells):
            lines.append(_line(name, [each.words if each else "–" for each in cells]))
    for units in BASELINES:
        for mend in MENDS:
            best = [settled_cell(rows, net, units, mend, share) for share in shares]
            if any(best):
                name = units if mend == "as cut" else f"{units} + {mend}"
                marked = [
                    f"{each.words} {WIDTH_MARKS[method_of(each.method).widths]}" if each else "–"
                    for each in best
                ]
                lines.append(_line(name, marked))
    return lines


def verdicts(rows: Sequence[Row], net: str, shares: Sequence[float], default: str) -> list[str]:
    """Return one sentence a share: ours beside the best baseline as published, mended, and folded."""
    sentences = []
    dense = dense_cell(rows, net)
    for share in shares:
        ours = cell(rows, net, f"interpolation/{default}/fold", share)
        if ours is None or dense is None:
            sentences.append(f"- {share:g}: {_why_not(rows, net, default, share)}")
            continue
        words = [f"ours {ours.mean:.3f} ({100 * (ours.mean - dense.mean):+.1f} points from dense)"]
        for mend in MENDS:
            cells = [settled_cell(rows, net, units, mend, share) for units in BASELINES]
            best = max((each for each in cells if each), key=lambda each: _lead(each, ours), default=None)
            if best is not None:
                lead = _lead(best, ours)
                won = "**wins**" if lead > 0 else "ties" if lead == 0 else "loses"
                same = (
                    "" if set(best.seeds) == set(ours.seeds) else f" (ours there {_on(ours, best.seeds):.3f})"
                )
                units = method_of(best.method).units
                words.append(f"best baseline {mend}: {units} {best.mean:.3f}{same}, {won}")
        sentences.append(f"- {share:g}: " + "; ".join(words) + ".")
    return sentences


def _on(ours: Cell, seeds: Sequence[int]) -> float:
    """Return the mean of a cell over some of its seeds."""
    return statistics.fmean(
        score for score, seed in zip(ours.scores, ours.seeds, strict=True) if seed in seeds
    )


def _lead(other: Cell, ours: Cell) -> float:
    """Return by how much another cell is ahead of ours on the seeds that it has.

    As the table shows them: half a thousandth is one item of many a test split.
    """
    return round(round(other.mean, 3) - round(_on(ours, other.seeds), 3), 3)


def worst_miss(rows: Iterable[Row], net: str) -> Row | None:
    """Return the row whose multiply-accumulates are farthest from what was options for."""
    measured = [row for row in rows if row.net == net and row.macs_share is not None and row.method != DENSE]
    return max(measured, key=lambda row: abs((row.macs_share or 0.0) - row.share), default=None)


def problems(rows: Iterable[Row], net: str) -> list[str]:
    """Return each problem once, with how many rows had it and an example."""
    having: dict[str, list[Row]] = {}
    for row in rows:
        if row.net == net and row.problem is not None:
            having.setdefault(row.problem, []).append(row)
    return [
        f"- {len(each)} × (for example {each[0].method}, {each[0].share:g}, seed {each[0].seed}): {problem}"
        for problem, each in having.items()
    ]


def _why_not(rows: Iterable[Row], net: str, default: str, share: float) -> str:
    method = f"interpolation/{default}/fold"
    problems = [row.problem for row in rows if (row.net, row.method, row.share) == (net, method, share)]
    return f"refused: {problems[0]}" if problems and problems[0] else "not measured"


def _line(head: str, cells: Sequence[str]) -> str:
    return f"| {head:<32} | " + " | ".join(f"{each:<15}" for each in cells) + " |"
