"""Comparisons as they may come out, made by hand: the figures fit one another, nothing was run."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from tpsprune.records import (
    Accuracy,
    ArmRun,
    BandPoint,
    BreakEven,
    BrokenOff,
    Change,
    Choices,
    Claim,
    ComparisonRecord,
    Design,
    EnergyClass,
    EnergyMethod,
    Grade,
    Grid,
    HistoryPoint,
    IdleSpan,
    InferenceSpan,
    Needed,
    PhaseMean,
    Quality,
    Reason,
    RunLine,
    Savings,
    Standing,
    Step,
    Support,
    WallFit,
    Window,
)
from tpsprune.report.savings.pages import write_report

MODELLED = "modelled + constant"
ON_CPU = {"cpu": EnergyClass.MODELLED, "ram": EnergyClass.CONSTANT}
ON_GPU = {**ON_CPU, "gpu": EnergyClass.MEASURED}
PHASES = ("set up", "train", "watch", "prune", "retrain", "evaluate")
SHARES = (0.03, 0.48, 0.04, 0.01, 0.4, 0.04)
ARMS = ("dense", "ticket", "stopped", "shape", "random", "earlybird", "half-width-2")
TAKES = (1.0, 0.57, 0.82, 0.61, 0.66, 0.71, 0.55)
QUALITIES = [("mse", "R²"), ("bce", "label accuracy"), ("own:loss", "quality")]
"""What the quality under a loss is called, where it is no accuracy."""
NOISE = (1.02, 0.97, 1.05, 0.99, 1.01, 0.96, 1.03, 0.98)


def window(phase: str, index: int, joules: float, classes: dict[str, EnergyClass], **more: Any) -> Window:
    shared = joules / len(classes)
    return Window(
        phase=phase,
        index=index,
        attempt=0,
        seconds=joules / 28,
        cpu_seconds=joules / 30,
        joules=dict.fromkeys(classes, shared),
        classes=classes,
        started="2026-01-02T03:04:05+00:00",
        **more,
    )


def method(classes: dict[str, EnergyClass]) -> EnergyMethod:
    details = {"codecarbon": "3.3.2", "cpu_mode": "cpu_load", "cpu_model": "AMD EPYC", "cpu_rated_watts": "8"}
    if "gpu" in classes:
        details |= {"gpu_mode": "counter", "gpu_model": "NVIDIA H100"}
    return EnergyMethod(
        meter="codecarbon",
        scope="machine",
        classes=classes,
        details={**details, "ram_mode": "constant", "ram_watts": "20", "pue": "1"},
        excluded=("disk", "network", "power supply loss"),
    )


def run(
    arm: str, pair: int, position: int, joules: float, takes: float, classes: dict[str, EnergyClass]
) -> ArmRun:
    epochs = round(30 * takes)
    history = tuple(
        HistoryPoint(
            epoch=float(epoch),
            joules=joules * epoch / epochs * (1 + 0.02 * math.sin(epoch)),
            validation_accuracy=0.99 - 0.5 * math.exp(-epoch / 3),
            signals={}
            if arm == "dense"
            else {"d_eff": 0.8 * math.exp(-epoch / 9) + 0.1, "H1 z": 2 + math.sin(epoch / 4)},
        )
        for epoch in range(2, epochs + 1, 2)
    )
    return ArmRun(
        arm=arm,
        seed=pair,
        pair=pair,
        position=position,
        windows=tuple(window(p, 0, joules * s, classes) for p, s in zip(PHASES, SHARES, strict=True)),
        method=method(classes),
        accuracy=accuracy_of(arm, pair),
        validation_accuracy=0.985,
        parameters=57_000 if arm == "dense" else 21_000,
        macs=3_400_000 if arm == "dense" else 1_300_000,
        epochs=float(epochs),
        drawn_epoch=None if arm == "dense" else 8.0,
        stopped_by="the budget" if arm == "dense" else "validation_loss, no better for 4 readings",
        history=history,
        given="the widths of the ticket" if arm == "shape" else "",
        logical_cpus=2,
        notes=("a note of <b>run</b> & co",) if arm == "ticket" and pair == 0 else (),
    )


def accuracy_of(arm: str, pair: int) -> float:
    return 0.9940 + 0.0006 * (pair % 3) - (0.0012 if arm != "dense" else 0.0)


def change(saving: float, pairs: int, wide: float = 0.06) -> Change:
    return Change(
        saving_share=saving,
        low=1 - (1 - saving) * math.exp(wide),
        high=1 - (1 - saving) * math.exp(-wide),
        pairs=pairs,
        deviation=wide / 2,
        p_t=0.0004,
        p_sign_flip=2 ** (1 - pairs),
        detectable_share=0.09,
        p_holm=0.0012,
    )


def design(arms: tuple[str, ...], pairs: int, device: str, inference: bool) -> Design:
    return Design(
        name="digits 5 & <script>alert(1)</script>",
        arms=arms,
        first_seed=0,
        order_seed=11,
        tolerance_share=0.01,
        required_accuracy=0.5,
        alpha=0.05,
        inference_seconds=10.0 if inference else 0.0,
        inference_batches=(1, 64) if inference else (),
        idle_seconds=30.0,
        foreign_load_share=0.25,
        patience=4,
        recipe_text='name = "digits"\n[task.data]\nkind = "digits"\n[train]\nepochs = 30\n',
        recipe_sha256="9f" * 32,
        device=device,
        machine={
            "system": "Linux",
            "architecture": "x86_64",
            "logical_cpus": 2,
            "threads": 1,
            "python": "cpython",
        },
        versions={"python": "3.11.2", "torch": "2.13.0", "codecarbon": "3.3.2", "tpsprune": "0.1.0"},
        begun="2026-01-02T03:00:00+00:00",
        command="tpsprune compare digits --pairs 6",
        pairs=pairs,
    )


def savings(
    standing: Standing = Standing.SAVING_MODELLED,
    *,
    factor: float = 1.0,
    arms: int = 2,
    pairs: int = 6,
    inference: bool = True,
    grid: bool = False,
    gpu: bool = False,
    wide: float = 0.06,
) -> Savings:
    """Return a comparison in which the ticket takes 0.57 · ``factor`` of the dense run."""
    classes = ON_GPU if gpu else ON_CPU
    kind = "measured + modelled + constant" if gpu else MODELLED
    names = ARMS[:arms]
    takes = [1.0, *(each * factor for each in TAKES[1:arms])]
    joules = {
        (arm, pair): 1200.0 * take * NOISE[pair] * NOISE[(pair + place) % 8] ** 0.5
        for place, (arm, take) in enumerate(zip(names, takes, strict=True))
        for pair in range(pairs)
    }
    runs = tuple(
        run(arm, pair, pair * arms + place, joules[arm, pair], min(take, 1.2), classes)
        for pair in range(pairs)
        for place, (arm, take) in enumerate(zip(names, takes, strict=True))
    )
    chosen = Choices(
        grid=Grid(grams_per_kwh=56.0, country="FRA", year=2023, source="Ember") if grid else None,
        per_day=10_000.0 if inference else None,
    )
    comparison = ComparisonRecord(
        design=design(names, pairs, "cuda" if gpu else "cpu", inference),
        runs=runs,
        idle=tuple(IdleSpan(pair=pair, window=window("idle", pair, 640.0, classes)) for pair in range(pairs)),
        inference=tuple(
            InferenceSpan(
                arm=arm,
                seed=pair,
                pair=pair,
                batch=64,
                items=50_000,
                window=window("infer", 0, 280.0, classes),
            )
            for arm in names
            for pair in range(pairs)
            if inference
        ),
        broken_off=(
            BrokenOff(arm="ticket", seed=0, pair=0, position=1, windows=(window("train", 0, 90.0, classes),)),
            BrokenOff(
                arm="warm-up",
                seed=0,
                pair=None,
                position=0,
                windows=(window("train", 0, 12.0, classes),),
                why="a short run to warm up, thrown away",
            ),
        ),
        choices=chosen,
        pairs_asked=pairs,
        notes=("a pair was run again",),
    )
    claims = [
        claim("training", arm, None, standing if place == 0 else other(standing), 1 - take, pairs, kind, wide)
        for place, (arm, take) in enumerate(zip(names[1:], takes[1:], strict=True))
    ]
    if inference:
        claims += [
            claim("inference", arm, batch, other(standing), 1 - take * 0.9, pairs, kind, wide)
            for arm, take in zip(names[1:], takes[1:], strict=True)
            for batch in (1, 64)
        ]
    return Savings(
        comparison=comparison,
        grade=Grade(
            letter="C" if gpu else "D",
            meaning="counters for some parts, a model for the rest" if gpu else "a load model",
            measured_share=0.7 if gpu else 0.0,
            modelled_share=0.1 if gpu else 0.29,
            constant_share=0.2 if gpu else 0.71,
        ),
        claims=tuple(claims),
        accuracies=tuple(accuracy(arm, pairs) for arm in names[1:]),
        ledger=tuple(
            PhaseMean(
                arm=arm,
                phase=phase,
                joules=1200 * take * share,
                seconds=43 * take * share,
                cpu_seconds=40 * take * share,
                energy_class=kind,
            )
            for arm, take in zip(names, takes, strict=True)
            for phase, share in zip(PHASES, SHARES, strict=True)
            if arm != "dense" or phase in {"set up", "train", "evaluate"}
        ),
        attribution=attribution(arms, pairs, takes, wide),
        break_even=tuple(pays_back(batch, 1 - takes[1], kind) for batch in (1, 64)) if inference else (),
        quality=Quality(
            windows=len(runs) * len(PHASES),
            invalid=("ticket, pair 0, train 0: no time passed",)
            if standing is Standing.INVALID_MEASUREMENT
            else (),
            foreign_load_share=0.08,
            steal_share=0.011,
            idle_watts=21.3,
            idle_spans=pairs,
            hottest_gpu_celsius=61.0 if gpu else None,
            set_aside=(),
            lost_joules=102.0,
        ),
        needed=(Needed(0.05, 31), Needed(0.1, 9), Needed(0.2, 6), Needed(0.001, None)),
        runs=tuple(line(each, each.position != 2 or pairs < 4, kind, grid) for each in runs),
        may_claim=("The ticket took 43 % less modelled energy to train than dense, at equal accuracy.",)
        if standing.is_saving
        else (),
        may_not_claim=("measured kWh", "a reduction of CO₂"),
        complete=True,
        wall_fit=WallFit(slope=1.2, offset_watts=38.0, r_squared=0.971, windows=40, interval_seconds=1.0)
        if gpu
        else None,
    )


def other(standing: Standing) -> Standing:
    return Standing.WITHIN_NOISE if standing.is_saving else standing


def claim(
    kind: str,
    arm: str,
    batch: int | None,
    standing: Standing,
    saving: float,
    pairs: int,
    energy_class: str,
    wide: float,
) -> Claim:
    base = 1200.0 if kind == "training" else (0.0048 if batch == 1 else 0.0009)
    bare = standing is Standing.INVALID_MEASUREMENT
    return Claim(
        kind=kind,
        arm=arm,
        baseline="dense",
        batch=batch,
        standing=standing,
        statement=f"{arm} takes {saving:.0%} less than dense over {pairs} pairs ({standing}).",
        reasons=(
            Reason("PAIRS", f"{pairs} pairs, and a claim takes at least 5"),
            Reason("CLASS", "every watt is modelled"),
        ),
        energy_class=energy_class,
        joules=None if bare else base * (1 - saving),
        baseline_joules=None if bare else base,
        change=None if bare else change(saving, pairs, wide),
        idle_subtracted=None if bare else change(saving * 0.9, pairs, wide * 2),
        band=()
        if bare
        else tuple(
            BandPoint(f"cpu {curve}, {tdp} W, RAM {ram} W", saving - 0.002 * tdp + 0.003 * ram)
            for curve in ("linear", "cubic")
            for tdp in (8, 100)
            for ram in (10, 20)
        ),
        support=(
            Support("multiply-accumulates", 0.62, True),
            Support("time", saving, saving > 0),
            Support("CPU-seconds", saving, saving > 0),
        ),
    )


def accuracy(arm: str, pairs: int) -> Accuracy:
    return Accuracy(
        arm=arm,
        baseline="dense",
        pairs=pairs,
        mean=0.9934,
        baseline_mean=0.9946,
        difference_share=-0.0012,
        lower_share=-0.0031 if pairs > 1 else None,
        tolerance_share=0.01,
        preserved=True,
    )


def attribution(arms: int, pairs: int, takes: list[float], wide: float) -> tuple[Step, ...]:
    if arms < 3:
        return (
            Step(
                what="stopping and the smaller net together",
                arm="ticket",
                baseline="dense",
                change=change(1 - takes[1], pairs, wide),
                detail="no arm tells them apart",
            ),
        )
    return (
        Step(
            what="stopping earlier",
            arm="stopped",
            baseline="dense",
            change=change(1 - takes[2], pairs, wide),
            detail="",
        ),
        Step(
            what="the smaller net",
            arm="ticket",
            baseline="stopped",
            change=change(1 - takes[1] / takes[2], pairs, wide),
            detail="",
        ),
    )


def pays_back(batch: int, saving: float, kind: str) -> BreakEven:
    each = 0.0048 if batch == 1 else 0.0009
    if saving > 0:
        return BreakEven(
            arm="ticket",
            batch=batch,
            extra_joules=-1200 * saving,
            saved_joules=each * saving,
            inferences=0.0,
            low=0.0,
            high=0.0,
            per_day=10_000.0,
            days=0.0,
            reason="the training took no more than the baseline's: paid back before the first inference",
            energy_class=kind,
        )
    inferences = -1200 * saving / (each * 0.2)
    return BreakEven(
        arm="ticket",
        batch=batch,
        extra_joules=-1200 * saving,
        saved_joules=each * 0.2,
        inferences=inferences,
        low=inferences * 0.7,
        high=inferences * 1.8,
        per_day=10_000.0,
        days=inferences / 10_000,
        reason="",
        energy_class=kind,
    )


def line(each: ArmRun, counts: bool, kind: str, grid: bool) -> RunLine:
    joules = sum(w.total_joules or 0.0 for w in each.windows)
    return RunLine(
        position=each.position,
        pair=each.pair,
        arm=each.arm,
        seed=each.seed,
        joules=joules,
        energy_class=kind,
        seconds=joules / 28,
        cpu_seconds=joules / 30,
        accuracy=each.accuracy,
        macs=each.macs,
        parameters=each.parameters,
        epochs=each.epochs,
        stopped_by=each.stopped_by,
        counted=counts,
        why_not="" if counts else "others took 31 % of the machine",
        grams_co2=joules / 3.6e6 * 56 if grid else None,
    )


def metered(found: Savings, method: EnergyMethod, classes: dict[str, EnergyClass], kind: str) -> Savings:
    """Return a comparison with the same joules from another meter; what was broken off stays as it was."""

    def anew(window_: Window) -> Window:
        shared = (window_.total_joules or 0.0) / len(classes)
        return replace(window_, joules=dict.fromkeys(classes, shared), classes=classes)

    before = found.comparison
    comparison = replace(
        before,
        runs=tuple(
            replace(each, method=method, windows=tuple(map(anew, each.windows))) for each in before.runs
        ),
        idle=tuple(replace(each, window=anew(each.window)) for each in before.idle),
        inference=tuple(replace(each, window=anew(each.window)) for each in before.inference),
    )
    return replace(
        found,
        comparison=comparison,
        claims=tuple(replace(each, energy_class=kind) for each in found.claims),
        ledger=tuple(replace(each, energy_class=kind) for each in found.ledger),
        break_even=tuple(replace(each, energy_class=kind) for each in found.break_even),
        runs=tuple(replace(each, energy_class=kind) for each in found.runs),
    )


def simulated(*, grid: bool = False) -> Savings:
    """Return a comparison on the meter for tests."""
    classes = dict.fromkeys(ON_CPU, EnergyClass.SIMULATED)
    fake = EnergyMethod(meter="fake", scope="simulated", classes=classes, excluded=("everything real",))
    found = metered(savings(Standing.SAVING_SIMULATED, grid=grid), fake, classes, "simulated")
    return replace(found, grade=replace(found.grade, letter="S", meaning="a simulated meter"))


def at_the_wall(*, fit: bool = False) -> Savings:
    """Return a comparison with a wall meter's joules, and the line that could be drawn, or none."""
    classes = {"wall": EnergyClass.MEASURED}
    plug = EnergyMethod(meter="wall meter", scope="machine", classes=classes, details={"interval": "1 s"})
    found = metered(savings(Standing.SAVING_MEASURED), plug, classes, "measured")
    return replace(
        found,
        comparison=replace(
            found.comparison, choices=replace(found.comparison.choices, wall_meter="wall.csv")
        ),
        grade=Grade(
            letter="A", meaning="a wall meter", measured_share=1.0, modelled_share=0.0, constant_share=0.0
        ),
        wall_fit=WallFit(slope=1.2, offset_watts=-3.0, r_squared=0.97, windows=40, interval_seconds=1.0)
        if fit
        else None,
    )


def unmetered() -> Savings:
    """Return a comparison in which nothing was metered: no joules anywhere."""
    found = savings(Standing.INVALID_MEASUREMENT, inference=False)
    bare = tuple(
        replace(
            each,
            windows=tuple(replace(w, joules={}, classes={}) for w in each.windows),
            history=tuple(replace(point, joules=None) for point in each.history),
            method=EnergyMethod(meter="none", scope="none", excluded=("all energy",)),
        )
        for each in found.comparison.runs
    )
    return replace(
        found,
        comparison=replace(found.comparison, runs=bare, idle=(), broken_off=()),
        claims=tuple(replace(each, energy_class="none") for each in found.claims),
        ledger=tuple(replace(each, joules=None, energy_class="none") for each in found.ledger),
        attribution=(),
        runs=tuple(replace(each, joules=None, energy_class="none") for each in found.runs),
        quality=replace(found.quality, idle_watts=None, lost_joules=None),
        grade=Grade(
            letter="-",
            meaning="nothing was metered",
            measured_share=0.0,
            modelled_share=0.0,
            constant_share=0.0,
        ),
        may_claim=(),
    )


EXAMPLES: dict[str, Savings] = {
    "saving": savings(),
    "saving on a GPU, seven arms, a grid": savings(
        Standing.SAVING_MEASURED, arms=7, pairs=8, grid=True, gpu=True
    ),
    "costs more": savings(Standing.COST_INCREASE_MODELLED, factor=2.4),
    "too few pairs": savings(Standing.INSUFFICIENT_RUNS, pairs=3, wide=0.5),
    "invalid": savings(Standing.INVALID_MEASUREMENT),
    "within noise, no inference": savings(Standing.WITHIN_NOISE, factor=1.72, inference=False),
    "simulated": simulated(),
    "nothing metered": unmetered(),
    "at the wall": at_the_wall(),
}

ALL_OF_IT = "saving on a GPU, seven arms, a grid"


@cache
def written(example: str) -> dict[str, str]:
    """Return the files of an example's report: written once, because drawing takes seconds."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write_report(EXAMPLES[example], Path(folder))
        return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in paths}
