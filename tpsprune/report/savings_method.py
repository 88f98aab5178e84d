"""How the figures were come by: meter, hardware, grid, rules, and what the data are worth."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tpsprune.records import BrokenOff, EnergyClass, EnergyMethod, Grid, Savings
from tpsprune.report import words
from tpsprune.report.savings_blocks import (
    COUNTED,
    Block,
    Bullets,
    Cell,
    Inline,
    Paragraph,
    Section,
    Table,
    Tagged,
    bullets,
    chosen,
    counted,
    measured,
    name,
    says,
    table,
)
from tpsprune.report.savings_plot import class_of_windows, combined, energy_class, lost_class, lost_unknown

__all__ = ["distinct_methods", "idle_class", "method_section", "quality_section"]

_SCOPES = {
    "machine": "Metered by {}, of the whole machine.",
    "process": "Metered by {}, of the process alone.",
    "simulated": "Simulated by the meter '{}': of no machine.",
    "recorded": "Taken by the meter '{}' from windows that were recorded earlier.",
    "none": "Nothing was metered.",
}


def distinct_methods(savings: Savings) -> list[EnergyMethod]:
    """Return every way in which runs were metered, in the order they first occur: one, if all is well."""
    methods: list[EnergyMethod] = []
    for run in savings.comparison.runs:
        if run.method not in methods:
            methods.append(run.method)
    return methods


def method_section(savings: Savings) -> Section:
    """Return the tables of method, hardware, grid, and of what was fixed beforehand."""
    methods = distinct_methods(savings)
    blocks: list[Block] = []
    for method in methods:
        blocks += [_method(method), *_left_out(method)]
    if len(methods) > 1:
        blocks.append(says("The runs were not all metered in the same way."))
    blocks += [*_wall(savings), _idle(savings), _hardware(savings), _grid(savings), _rules(savings)]
    return Section("method", "Method, hardware, grid", tuple(blocks))


def _method(method: EnergyMethod) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for part, kind in method.classes.items():
        own = {key: value for key, value in method.details.items() if key.startswith(f"{part}_")}
        how = ", ".join(
            f"{key.removeprefix(f'{part}_').replace('_', ' ')} {value}"
            for key, value in own.items()
            if "watts" not in key
        )
        watts = next((value for key, value in own.items() if "watts" in key), None)
        rows.append(
            (
                name(part),
                combined([kind]) if kind.value != "mixed" else "of several classes",
                name(how or "–"),
                "–" if watts is None else Tagged(f"{watts} W", _assumed(kind)),
            )
        )
    rest = [
        (key, value)
        for key, value in method.details.items()
        if not any(key.startswith(f"{part}_") for part in method.classes)
    ]
    rows += [
        (name(key), "–", *(("–", chosen(value)) if key == "pue" else (name(value), "–")))
        for key, value in rest
    ]
    before, braces, after = _SCOPES.get(method.scope, f"Metered by {{}}, of: {method.scope}.").partition("{}")
    named: tuple[Inline, ...] = (name(method.meter), after) if braces else ()
    caption = says(before, *named)
    return table(caption, ("component", "its class", "how", "assumed"), rows, texts=3)


def _assumed(kind: EnergyClass) -> str:
    """Return the class of a part's watts: assumed, unless the meter for tests made them up."""
    return kind.value if kind is EnergyClass.SIMULATED else EnergyClass.CONSTANT.value


def _left_out(method: EnergyMethod) -> list[Paragraph]:
    return [says("Left out: ", name(", ".join(method.excluded)), ".")] if method.excluded else []


def _wall(savings: Savings) -> list[Paragraph]:
    fit = savings.wall_fit
    if savings.comparison.choices.wall_meter is None:
        return [says("No wall meter was read: losses of the power supply, fans and disks are in no figure.")]
    if fit is None:
        return [
            says(
                "A wall meter was read, and its readings are the figures. They could not be held against the "
                "software's: too few windows are long enough, or the software has the same watts in all."
            )
        ]
    return [
        says(
            "Held against a wall meter: wall watts = ",
            measured(
                f"{fit.slope:.3g} × software watts {'+' if fit.offset_watts >= 0 else '−'} "
                f"{abs(fit.offset_watts):.3g} W".replace("-", "−")
            ),
            ", r² ",
            measured(f"{fit.r_squared:.3f}"),
            " over ",
            counted(fit.windows),
            " windows, a reading every ",
            measured(words.seconds(fit.interval_seconds)),
            ".",
        )
    ]


def idle_class(savings: Savings) -> str:
    """Return of what classes the joules of the idle machine are."""
    return class_of_windows(span.window for span in savings.comparison.idle)


def _idle(savings: Savings) -> Paragraph:
    quality = savings.quality
    if quality.idle_watts is None:
        return says("The idle machine was not metered, so nothing could be shown with it taken off.")
    return says(
        "The machine doing nothing takes ",
        Tagged(f"{quality.idle_watts:.3g} W", idle_class(savings)),
        ", mean of ",
        counted(quality.idle_spans),
        " spans of ",
        chosen(words.seconds(savings.comparison.design.idle_seconds)),
        ". The total decides every claim; figures with the idle machine taken off stand beside it.",
    )


def _hardware(savings: Savings) -> Table:
    design = savings.comparison.design
    rows: list[tuple[Cell, ...]] = [("device", name(design.device))]
    rows += [(name(key.replace("_", " ")), _plain(value)) for key, value in design.machine.items()]
    return table(says("The machine."), ("what", "found"), rows, texts=2)


def _plain(value: Any) -> Inline:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return name(value)
    return Tagged(f"{value:,}", COUNTED)


def _grid(savings: Savings) -> Block:
    grid = savings.comparison.choices.grid
    if grid is None:
        return says(
            "CO₂: not claimed, because no grid factor was chosen. Joules do not turn into grams without one."
        )
    kind = f"{energy_class(savings)} + chosen"
    rows: list[tuple[Cell, ...]] = []
    for arm in savings.comparison.design.arms:
        masses = [r.grams_co2 for r in savings.runs if r.arm == arm and r.counted and r.grams_co2 is not None]
        if masses:
            rows.append(
                (name(arm), Tagged(words.grams(sum(masses) / len(masses)), kind), counted(len(masses)))
            )
    caption = says(
        "CO₂ equivalents of a training at ",
        chosen(f"{grid.grams_per_kwh:g} g/kWh"),
        " (",
        name(_place(grid)),
        "): of use only, nothing of making or scrapping the machine.",
    )
    return table(caption, ("arm", "a training", "runs"), rows)


def _place(grid: Grid) -> str:
    """Return of what place and year a factor is, as far as it says so, and whence it comes."""
    of = ", ".join(str(each) for each in (grid.country, grid.year) if each)
    return "; ".join(each for each in (of, grid.source) if each)


def _rules(savings: Savings) -> Table:
    design = savings.comparison.design
    rows: list[tuple[Cell, ...]] = [
        ("arms", name(", ".join(design.arms))),
        ("pairs asked for at the beginning", chosen(design.pairs)),
        ("first seed", chosen(design.first_seed)),
        ("order drawn with seed", chosen(design.order_seed)),
        (f"{design.quality} the task asks for", chosen(f"{design.required_accuracy:.2f}")),
        (f"{design.quality} an arm may lose", chosen(f"{design.tolerance_share * 100:.2f} points")),
        ("error rate of a claim", chosen(f"{design.alpha:g}")),
        ("others may take of the machine", chosen(words.percent(design.foreign_load_share))),
        ("idle before each pair", chosen(words.seconds(design.idle_seconds))),
        ("inference metered for", chosen(words.seconds(design.inference_seconds))),
        ("in batches of", chosen(", ".join(map(str, design.inference_batches)) or "–")),
        ("patience of early stopping, in readings", chosen(design.patience)),
    ]
    return table(says("Fixed before the first run."), ("rule", "setting"), rows, texts=2)


def quality_section(savings: Savings) -> Section:
    """Return what the data are worth: invalid windows, neighbours, runs set aside, joules in no claim."""
    quality, gone = savings.quality, savings.comparison.broken_off
    rows: list[tuple[Cell, ...]] = [
        ("windows metered: trainings that count, answers, the idle machine", counted(quality.windows)),
        ("of these invalid", counted(len(quality.invalid))),
        (
            "largest share of the machine that others took, over a training or a window of answers",
            _share(quality.foreign_load_share),
        ),
        ("largest share that a hypervisor took, likewise", _share(quality.steal_share)),
        ("hottest GPU, at the end of any of these windows", _heat(savings)),
        ("warm-up runs thrown away", counted(sum(each.pair is None for each in gone))),
        ("runs set aside", counted(sum(each.pair is not None and each.why != "" for each in gone))),
        ("runs broken off", counted(sum(each.pair is not None and not each.why for each in gone))),
        ("energy in no claim: of runs thrown away, set aside or broken off", _lost(savings)),
    ]
    shown = table(says("What was checked, and over what."), ("check", "found"), rows, texts=2)
    lists = [
        *_list("Invalid windows", map(_invalid, quality.invalid)),
        *_list("In no claim", map(_gone, gone)),
        *_list(
            "Noted by the comparison", (says(each, number_class=COUNTED) for each in savings.comparison.notes)
        ),
    ]
    return Section("quality", "What the data are worth", (shown, *lists))


def _lost(savings: Savings) -> Cell:
    known, unknown = savings.quality.lost_joules, lost_unknown(savings)
    if known is None:
        return "not known" if unknown else "none"
    shown = Tagged(words.joules(known), lost_class(savings))
    return (shown, ", and of ", counted(unknown), " it is not known") if unknown else shown


def _heat(savings: Savings) -> Inline:
    if savings.quality.hottest_gpu_celsius is not None:
        return measured(f"{savings.quality.hottest_gpu_celsius:.0f} °C")
    has_gpu = any("gpu" in run.method.classes for run in savings.comparison.runs)
    return "not known" if has_gpu or savings.comparison.design.device != "cpu" else "no GPU"


def _invalid(words_: str) -> Paragraph:
    """Return a broken invariant: where it was met is a name, what was met was measured."""
    where, colon, fault = words_.partition(": ")
    return says(name(where), colon, measured(fault)) if colon else says(counted(words_))


def _gone(each: BrokenOff) -> Paragraph:
    windows = f" after {len(each.windows)} window{'' if len(each.windows) == 1 else 's'}"
    when = windows if each.windows else "; what it took is not known"
    why = measured(each.why) if each.why else counted(f"broken off{when}")
    return says(name(f"{each.arm}, seed {each.seed}"), ": ", why)


def _list(title: str, items: Iterable[Paragraph]) -> list[Bullets]:
    found = tuple(items)
    return [bullets(title, found)] if found else []


def _share(value: float | None) -> Inline:
    return "not known" if value is None else measured(words.percent(value))
