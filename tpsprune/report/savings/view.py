"""What a report shows: the verdict, the three numbers and every table, from the records, for the templates.

The templates hold the sentences; here are the numbers in them, each with its class, and the rows of tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tpsprune.claims.machines import by_machine
from tpsprune.records import (
    Accuracy,
    BreakEven,
    BrokenOff,
    Claim,
    EnergyClass,
    EnergyMethod,
    Savings,
    Support,
    classes_of,
    join_classes,
    joules_of,
    seconds_of,
)
from tpsprune.report import words
from tpsprune.report.forms import (
    UNLABELLED,
    Cell,
    Code,
    Number,
    Table,
    chosen,
    counted,
    derived,
    measured,
    name,
)
from tpsprune.report.savings.terms import (
    Tone,
    accuracy_of,
    claim_of,
    claim_title,
    class_of,
    class_of_verdict,
    format_change,
    format_interval,
    format_joules,
    idle_class,
    inference_of,
    join_class_words,
    lost_class,
    lost_unknown,
    metered_pairs,
    standing_words,
    tone_of,
    training_of,
)

_BY_THE_CLOCK = {"time", "CPU-seconds"}
"""What a clock measured of what speaks for a claim; the rest was counted."""
_REASON_KINDS = {
    **dict.fromkeys(("TOO_FEW_PAIRS", "INCOMPLETE", "NOT_LEARNED", "RUN_FAILED"), "counted"),
    **dict.fromkeys(("OPPONENT_NOT_RUN", "OPPONENT_FAILED"), "counted"),
    **dict.fromkeys(("RARE_LONG_RUNS", "NOT_BETTER"), "derived"),
    **dict.fromkeys(("ACCURACY_BOUND", "ACCURACY_UNKNOWN", "SIGN_FLIP", "SEVERAL_CLAIMS"), "derived"),
}
"""The class of the numbers in a reason, where they are not of joules."""
_OF_MEANS = "an inference is no cheaper"
"""The beginning of a remark that compares two means."""
_DAYS_A_YEAR = 365


@dataclass(frozen=True, slots=True)
class Headline:
    """One of the three numbers, its interval, and what its notes are made of."""

    title: str
    figure: Number
    interval: Number
    tone: Tone = "neutral"
    took: Number | None = None
    batch: int | None = None
    refusal: str = ""
    accuracy: Accuracy | None = None
    missing: str = ""

    @property
    def kind(self) -> str:
        """The class to be written next to the number, if any."""
        return "" if self.figure.kind in UNLABELLED else self.figure.kind


def build_view(
    savings: Savings, plots: Mapping[str, Any], left_out: Sequence[str], journal_sha256: str = ""
) -> dict[str, Any]:
    """Return everything the templates of a report name.

    ``plots`` are the plots by their stem, ``None`` for those without data, whose reasons are ``left_out``.
    """
    comparison, verdict = savings.comparison, savings.verdict
    design, quality, grid = comparison.design, savings.quality, comparison.choices.grid
    broken_off = comparison.broken_off
    kind = class_of_verdict(savings)
    # The joules of runs broken off are there before any run counts.
    reason_kinds = {**_REASON_KINDS, "RUNS_BROKEN_OFF": lost_class(savings)}
    couples = [metered_pairs(savings, claim) for claim in savings.claims if claim.kind == "training"]
    return {
        "title": f"Energy report: {design.name}",
        "savings": savings,
        "plots": plots,
        "left_out": left_out,
        "journal_sha256": journal_sha256,
        "kind": kind,
        "support": _support_table(savings),
        "pay_back": _pay_back(savings),
        "started": sorted((*savings.runs, *broken_off), key=lambda run: run.position),
        "begun": _format_moment(design.begun),
        "machines": by_machine(comparison),
        "pairs_counted": len({run.pair for run in savings.runs if run.counted and run.arm == verdict.arm}),
        "pairs_drawn": max(map(len, couples), default=0),
        "banner_of_verdict": _banner(savings),
        "three_numbers": headlines(savings),
        "may_claim": [Number(each, kind) for each in savings.may_claim],
        "may_not_claim": [Number(each, kind) for each in savings.may_not_claim],
        "reasons": [
            # Without joules the figures in a reason are those of windows and pairs.
            (
                Code(each.code),
                Number(f" {each.detail}", reason_kinds.get(each.code, "counted" if kind == "none" else kind)),
            )
            for each in verdict.reasons
        ],
        "lost": Number(words.joules(quality.lost_joules), lost_class(savings)),
        "lost_runs_unknown": lost_unknown(savings),
        "methods": [(method, _method_table(method)) for method in distinct_methods(savings)],
        "idle_watts": Number(f"{quality.idle_watts or 0.0:.3g} W", idle_class(savings)),
        "grid_place": ""
        if grid is None
        else "; ".join(
            filter(None, (", ".join(str(e) for e in (grid.country, grid.year) if e), grid.source))
        ),
        "hottest_gpu": _hottest_gpu(savings),
        "lost_energy": _lost_energy(savings),
        "steps_energy": _steps_energy(savings),
        "uncounted": {
            "warm_up": sum(each.pair is None for each in broken_off),
            "set_aside": sum(each.pair is not None and each.why != "" for each in broken_off),
            "broken_off": sum(each.pair is not None and not each.why for each in broken_off),
        },
        "invalid": [_invalid(each) for each in quality.invalid],
        "not_claimed": [_not_claimed(each) for each in broken_off],
        "notes": [counted(each) for each in comparison.notes],
        "run_notes": [
            (name(f"{run.arm}, seed {run.seed}"), counted(f": {note}"))
            for run in comparison.runs
            for note in (
                *([f"was given {run.given}"] if run.given else []),
                *([f"failed: {run.failure}"] if run.failure else []),
                *run.notes,
            )
        ],
    }


def distinct_methods(savings: Savings) -> list[EnergyMethod]:
    """Return every way in which runs were metered, in the order they first occur: one, if all is well."""
    methods: list[EnergyMethod] = []
    for run in savings.comparison.runs:
        if run.method not in methods:
            methods.append(run.method)
    return methods


def headlines(savings: Savings) -> tuple[Headline, Headline, Headline]:
    """Return the three numbers: energy of a training, energy of an inference, accuracy."""
    inference, accuracy = inference_of(savings), accuracy_of(savings)
    quality = savings.comparison.design.quality
    is_whole = accuracy is None or accuracy.arm == savings.verdict.arm
    return (
        _energy(savings, training_of(savings), "Energy of a training" if is_whole else "Energy of all sizes"),
        _missing("Energy of an inference", "not measured", "No inference was metered.")
        if inference is None
        else _energy(savings, inference, "Energy of an inference"),
        _missing(f"Test {quality}", "not known", f"No pair has the {quality} of both.")
        if accuracy is None
        else Headline(
            f"Test {quality}" if is_whole else f"Test {quality} of {accuracy.arm}, the worst size",
            counted(words.points(accuracy.difference_share)),
            derived(
                "no bound from a single pair"
                if accuracy.lower_share is None
                else f"at worst {words.points(accuracy.lower_share)} (one-sided 95 %)"
            ),
            accuracy=accuracy,
        ),
    )


def format_grade(letter: str) -> str:
    """Return a grade as it is shown: a dash where nothing was metered.

    >>> format_grade("D"), format_grade("-")
    ('D', '–')
    """
    return "–" if letter == "-" else letter


def format_needed(pairs: int | None) -> str:
    """Return a number of pairs; ``None`` is out of reach.

    >>> format_needed(9), format_needed(None)
    ('9', 'more than 1,000')
    """
    return "more than 1,000" if pairs is None else f"{pairs:,}"


def format_fact(value: Any) -> Number:
    """Return a fact about the machine: numbers of it are counted, all else is a name."""
    return name(value) if isinstance(value, bool) or not isinstance(value, int | float) else counted(value)


def format_tolerance(share: float) -> Number:
    """Return the share of accuracy that an arm may lose, in points."""
    return chosen(f"{share * 100:.2f} points")


def format_wall_line(fit: Any) -> str:
    """Return the line from the software's watts to the wall meter's."""
    sign = "+" if fit.offset_watts >= 0 else "−"
    return f"{fit.slope:.3g} × software watts {sign} {abs(fit.offset_watts):.3g} W".replace("-", "−")


def _banner(savings: Savings) -> dict[str, Any]:
    verdict, grade = savings.verdict, savings.grade
    shares = ", ".join(
        f"{words.percent(getattr(grade, f'{kind}_share'))} {kind}"
        for kind in ("measured", "modelled", "constant")
    )
    return {
        "tone": tone_of(verdict.standing),
        "words": standing_words(verdict.standing, savings.comparison.design.quality),
        "code": Code(verdict.standing.value),
        "statement": Number(verdict.statement, class_of_verdict(savings)),
        "grade": format_grade(grade.letter),
        "meaning": Number(
            grade.meaning if grade.letter == "-" else f"{grade.meaning}; of all joules {shares}",
            join_class_words(class_of(savings, run.energy_class) for run in savings.runs),
        ),
    }


def _energy(savings: Savings, claim: Claim, title: str) -> Headline:
    kind, tone, change = class_of(savings, claim.energy_class), tone_of(claim.standing), claim.change
    took = None
    if claim.joules is not None and claim.baseline_joules is not None:
        mine, other = format_joules(claim, claim.joules), format_joules(claim, claim.baseline_joules)
        watt_hours = f" ({words.watt_hours(claim.joules)})" if claim.kind == "training" else ""
        took = Number(f"{mine}{watt_hours} in place of {other}", kind)
    refused = tone == "refused"
    interval = format_interval(change, kind)
    return Headline(
        title,
        format_change(change, kind),
        interval if change is None else Number(f"95 % interval: {interval.text}", kind),
        "neutral" if refused else tone,
        took=took,
        batch=claim.batch,
        refusal=standing_words(claim.standing, savings.comparison.design.quality, inside=True)
        if refused
        else "",
    )


def _missing(title: str, figure: str, why: str) -> Headline:
    return Headline(title, Number(figure, "none"), Number("", "none"), missing=why)


def _format_moment(written: str) -> str:
    """Return a moment without its seconds.

    >>> _format_moment("2026-01-02T03:04:05+00:00"), _format_moment("yesterday")
    ('2026-01-02 03:04 UTC', 'yesterday')
    """
    return f"{written[:16].replace('T', ' ')} UTC" if written.endswith(("+00:00", "Z")) else written


def _support_table(savings: Savings) -> Table | None:
    support = tuple(dict.fromkeys(each.what for claim in savings.claims for each in claim.support))
    rows: list[tuple[Cell, ...]] = []
    for claim in savings.claims:
        found = {each.what: each for each in claim.support}
        if found:
            rows.append((name(claim_title(claim)), *(_support_cell(found.get(what)) for what in support)))
    return Table(("claim", *support), rows) if rows else None


def _support_cell(support: Support | None) -> Cell:
    if support is None:
        return "–"
    kind = "measured" if support.what in _BY_THE_CLOCK else "counted"
    agrees = ", agrees" if support.agrees else ", does not agree"
    return (Number(words.change(support.saving_share), kind), agrees)


def _pay_back(savings: Savings) -> Table | None:
    """Return a row for each arm and batch size; days and a year's saving where a volume was chosen."""
    per_day = savings.comparison.choices.per_day
    rows: list[tuple[Cell, ...]] = []
    for each in savings.break_even:
        kind = class_of(savings, each.energy_class)
        bounds = f"{_format_many(each.low)} to {_format_many(each.high)}"
        cells: tuple[Cell, ...] = (
            (name(each.arm), ", batch ", chosen(each.batch)),
            Number(_remark(savings, each) or "–", kind),
            Number(words.small_joules(each.extra_joules), kind),
            Number(words.small_joules(each.saved_joules), kind),
            Number(_format_many(each.inferences), kind),
            Number("–" if each.inferences is None else bounds, kind),
        )
        if per_day is not None:
            days = "–" if each.days is None else f"{each.days:,.1f}"
            year = _yearly(savings, each, per_day)
            cells += (Number(days, f"{kind} + chosen"), Number(year, f"{kind} + chosen"))
        rows.append(cells)
    headings = ("arm", "remark", "extra for the training", "saved by an inference", "inferences to pay back")
    volume = () if per_day is None else ("days", "saved in a year")
    return Table((*headings, "interval", *volume), rows, 2) if rows else None


def _remark(savings: Savings, each: BreakEven) -> str:
    """Return the reason, as one of means where the claims that would make a fact of it do not stand."""
    claims = (claim_of(savings, each.arm), claim_of(savings, each.arm, each.batch))
    fact = all(claim is not None and tone_of(claim.standing) != "refused" for claim in claims)
    return each.reason if fact or not each.reason.startswith(_OF_MEANS) else f"on average {each.reason}"


def _yearly(savings: Savings, each: BreakEven, per_day: float) -> str:
    """Return a year's saving, where that of one inference may be claimed."""
    claim = claim_of(savings, each.arm, each.batch)
    if claim is None or not claim.standing.is_saving or each.saved_joules is None:
        return "no claim"
    return words.watt_hours(each.saved_joules * per_day * _DAYS_A_YEAR)


def _format_many(value: float | None) -> str:
    return "–" if value is None else f"{float(f'{value:.3g}'):,.0f}"


def _method_table(method: EnergyMethod) -> Table:
    """Return a row for each component: its class, how it was metered, the watts assumed; then the rest."""
    rows: list[tuple[Cell, ...]] = []
    for part, kind in method.classes.items():
        own = {key: value for key, value in method.details.items() if key.startswith(f"{part}_")}
        how = ", ".join(
            f"{key.removeprefix(f'{part}_').replace('_', ' ')} {value}"
            for key, value in own.items()
            if "watts" not in key
        )
        watts = next((value for key, value in own.items() if "watts" in key), None)
        # Watts are assumed, unless the meter for tests made them up.
        assumed = kind if kind is EnergyClass.SIMULATED else EnergyClass.CONSTANT
        rows.append(
            (
                name(part),
                "of several classes" if kind is EnergyClass.MIXED else join_classes([kind]),
                name(how or "–"),
                "–" if watts is None else Number(f"{watts} W", assumed.value),
            )
        )
    for key, value in method.details.items():
        if not any(key.startswith(f"{part}_") for part in method.classes):
            rows.append((name(key), "–", *(("–", chosen(value)) if key == "pue" else (name(value), "–"))))
    return Table(("component", "its class", "how", "assumed"), rows, 3)


def _lost_energy(savings: Savings) -> Cell:
    joules, unknown = savings.quality.lost_joules, lost_unknown(savings)
    if joules is None:
        return "not known" if unknown else "none"
    shown = Number(words.joules(joules), lost_class(savings))
    return (shown, ", and of ", counted(unknown), " it is not known") if unknown else shown


def _steps_energy(savings: Savings) -> Cell:
    windows = [span.window for span in savings.comparison.steps]
    return Number(words.joules(joules_of(windows)), classes_of(windows)) if windows else "none"


def _hottest_gpu(savings: Savings) -> Cell:
    if savings.quality.hottest_gpu_celsius is not None:
        return measured(f"{savings.quality.hottest_gpu_celsius:.0f} °C")
    has_gpu = any("gpu" in run.method.classes for run in savings.comparison.runs)
    return "not known" if has_gpu or savings.comparison.design.device != "cpu" else "no GPU"


def _invalid(fault: str) -> Cell:
    """Return a broken invariant: where it was met is a name, what was met was measured."""
    where, colon, what = fault.partition(": ")
    return (name(where), colon, measured(what)) if colon else counted(fault)


def _not_claimed(each: BrokenOff) -> Cell:
    title = name(f"{each.arm}, seed {each.seed}")
    if each.why or not each.windows:
        return (title, ": ", measured(each.why or "broken off; what it took is not known"))
    joules = Number(words.joules(joules_of(each.windows)), classes_of(each.windows))
    took = measured(words.seconds(seconds_of(each.windows)))
    return (title, ": broken off; it took at least ", took, " and ", joules)
