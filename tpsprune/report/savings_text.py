"""A report in a terminal: the verdict, the three numbers, the arms, the reasons. 80 columns wide."""

from __future__ import annotations

from statistics import mean, stdev

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tpsprune.records import Claim, RunLine, Savings
from tpsprune.report import words
from tpsprune.report.savings_blocks import UNSAID, Headline, has_number
from tpsprune.report.savings_runs import needed_words
from tpsprune.report.savings_verdict import headlines
from tpsprune.report.savings_words import badge_of, class_of, standing_words, tone_of

__all__ = ["savings_lines"]

_STYLES = {"saves": "bold green", "costs": "bold red", "refused": "bold yellow"}


def savings_lines(savings: Savings) -> RenderableType:
    """Return what a comparison came to as a terminal shows it; without a terminal it is plain text."""
    verdict, grade, quality = savings.verdict, savings.grade, savings.comparison.design.quality
    blocks: list[RenderableType] = [
        Text.assemble(
            (standing_words(verdict.standing, quality), _STYLES[tone_of(verdict.standing)]),
            f"  {verdict.standing.value}, grade {badge_of(grade.letter)} ({grade.meaning})",
        ),
        Text(verdict.statement),
        Text(""),
        *(Text(line) for each in headlines(savings) for line in _number(each)),
        Text(""),
        _arms(savings),
    ]
    if verdict.reasons:
        blocks += [Text(""), *(Text(f"{each.code}: {each.detail}") for each in verdict.reasons)]
    blocks += [Text(f"May be claimed: {each}") for each in savings.may_claim]
    blocks += [Text(f"Not to be claimed: {each}") for each in savings.may_not_claim]
    if savings.needed:
        wanted = ", ".join(
            f"{words.percent(each.saving_share)} takes {needed_words(each.pairs)}" for each in savings.needed
        )
        blocks.append(Text(f"Pairs needed to see a saving at this noise: {wanted}."))
    if not savings.complete:
        blocks.append(Text(f"Not complete: {savings.comparison.under_way or 'pairs are missing'}."))
    return Lines(*blocks)


def _number(headline: Headline) -> list[str]:
    figure = f"{headline.title + ':':22} {headline.figure.text}"
    own, interval = headline.figure.number_class, headline.interval
    if own not in UNSAID:
        figure += f" [{own}]"
    if not interval.text:
        return [figure]
    said = f" [{interval.number_class}]" if has_number(interval) and interval.number_class != own else ""
    return [figure, f"{'':22} {interval.text}{said}"]


def _arms(savings: Savings) -> Table:
    """Return a row for each arm: what its training took with its deviation, and the change."""
    table = Table(box=None, pad_edge=False)
    table.add_column("arm", overflow="fold", max_width=14)
    for heading in (savings.comparison.design.quality, "energy", "±", "change"):
        table.add_column(heading, justify="right")
    kinds = {class_of(savings, run.energy_class) for run in savings.runs if run.counted}
    if len(kinds) > 1:
        table.add_column("class", overflow="fold", max_width=20)
    else:
        table.caption, table.caption_justify = f"Energy: {kinds.pop() if kinds else 'none'}.", "left"
    claims = {claim.arm: claim for claim in reversed(savings.claims) if claim.kind == "training"}
    for arm in savings.comparison.design.arms:
        counted = [run for run in savings.runs if run.arm == arm and run.counted]
        table.add_row(*_row(savings, arm, counted, claims.get(arm))[: len(table.columns)])
    return table


def _row(savings: Savings, arm: str, counted: list[RunLine], claim: Claim | None) -> tuple[str, ...]:
    joules = [run.joules for run in counted if run.joules is not None]
    accuracies = [run.accuracy for run in counted if run.accuracy is not None]
    kinds = sorted({class_of(savings, run.energy_class) for run in counted})
    change = claim.change if claim else None
    return (
        arm,
        f"{mean(accuracies):.4f}" if accuracies else "–",
        words.joules(mean(joules) if joules else None),
        words.joules(stdev(joules)) if len(joules) > 1 else "–",
        words.change(change.saving_share) if change else "–",
        ", ".join(kinds) or "none",
    )
