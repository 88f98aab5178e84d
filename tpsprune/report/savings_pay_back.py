"""The table of when a training is paid back: what may be claimed is told from what is only a mean."""

from __future__ import annotations

from tpsprune.records import BreakEven, Savings
from tpsprune.report import words
from tpsprune.report.savings_blocks import Cell, Table, Tagged, chosen, name, says, table
from tpsprune.report.savings_words import claim_of, class_of, tone_of

__all__ = ["pay_back_table"]

_DAYS_A_YEAR = 365
_OF_MEANS = "an answer is no cheaper"
"""How a remark begins that says of two means which is the smaller."""


def pay_back_table(savings: Savings) -> list[Table]:
    """Return a row for each arm and batch size; nothing where no answer was metered."""
    if not savings.break_even:
        return []
    per_day = savings.comparison.choices.per_day
    headings = [
        "arm",
        "remark",
        "extra for the training",
        "saved by an answer",
        "answers to pay back",
        "interval",
    ]
    caption = says("After how many answers the training is paid back, by the means over pairs.")
    if per_day is not None:
        headings += ["days", "saved in a year"]
        caption = says(
            "After how many answers the training is paid back, by the means over pairs; days and year at ",
            chosen(f"{per_day:,.0f}"),
            " answers a day, a year's saving only where that of an answer may be claimed.",
        )
    rows = [_row(savings, each, per_day) for each in savings.break_even]
    return [table(caption, headings, rows, texts=2)]


def _row(savings: Savings, each: BreakEven, per_day: float | None) -> tuple[Cell, ...]:
    kind = class_of(savings, each.energy_class)
    cells: list[Cell] = [
        (name(each.arm), ", batch ", chosen(each.batch)),
        Tagged(_remark(savings, each) or "–", kind),
        Tagged(words.small_joules(each.extra_joules), kind),
        Tagged(words.small_joules(each.saved_joules), kind),
        Tagged(_answers(each.inferences), kind),
        Tagged(
            "–" if each.inferences is None else f"{_answers(each.low)} to {_answers(each.high)}",
            kind,
        ),
    ]
    if per_day is not None:
        cells += [
            Tagged("–" if each.days is None else f"{each.days:,.1f}", f"{kind} + chosen"),
            Tagged(_yearly(savings, each, per_day), f"{kind} + chosen"),
        ]
    return tuple(cells)


def _remark(savings: Savings, each: BreakEven) -> str:
    """Return the reason, as one of means where the claims that would make a fact of it do not stand."""
    training, answer = _stands(savings, each.arm), _stands(savings, each.arm, each.batch)
    fact = training and answer
    return each.reason if fact or not each.reason.startswith(_OF_MEANS) else f"on average {each.reason}"


def _stands(savings: Savings, arm: str, batch: int | None = None) -> bool:
    claim = claim_of(savings, arm, batch)
    return claim is not None and tone_of(claim.standing) != "refused"


def _yearly(savings: Savings, each: BreakEven, per_day: float) -> str:
    claim = claim_of(savings, each.arm, each.batch)
    if claim is None or not claim.standing.is_saving or each.saved_joules is None:
        return "no claim"
    return words.watt_hours(each.saved_joules * per_day * _DAYS_A_YEAR)


def _answers(value: float | None) -> str:
    return "–" if value is None else f"{float(f'{value:.3g}'):,.0f}"
