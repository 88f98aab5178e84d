"""Comparisons of runs made by hand, assessed as every other is: nothing was run."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from tpsprune.claims import assess
from tpsprune.claims.ladder import may_claim, sentence_of
from tpsprune.records import (
    ArmRun,
    BrokenOff,
    Choices,
    ComparisonRecord,
    Design,
    EnergyClass,
    EnergyMethod,
    Grid,
    HistoryPoint,
    IdleSpan,
    InferenceSpan,
    Needed,
    Savings,
    Standing,
    WallFit,
    Window,
)
from tpsprune.report.savings.pages import write_report

ON_CPU = {"cpu": EnergyClass.MODELLED, "ram": EnergyClass.CONSTANT}
ON_GPU = {**ON_CPU, "gpu": EnergyClass.MEASURED}
DENSE_SHARES = {"set up": 0.03, "train": 0.93, "evaluate": 0.04}
SHARES = {"set up": 0.03, "train": 0.48, "watch": 0.04, "prune": 0.01, "retrain": 0.4, "evaluate": 0.04}
"""What each phase takes of a run's joules."""
ARMS = (
    "dense",
    "ticket",
    "dense-stopped",
    "shape-scratch",
    "random-ticket",
    "early-bird",
    "half-width-2",
)
TAKES = (1.0, 0.57, 0.82, 0.61, 0.66, 0.71, 0.55)
QUALITIES = [("mse", "R²"), ("bce", "label accuracy"), ("own:loss", "quality")]
"""What the quality under a loss is called, where it is no accuracy."""
NOISE = (1.02, 0.97, 1.05, 0.99, 1.01, 0.96, 1.03, 0.98)


def window(phase: str, index: int, joules: float, classes: dict[str, EnergyClass], **more: Any) -> Window:
    shared, seconds = joules / len(classes), joules / 28
    return Window(
        phase=phase,
        index=index,
        attempt=0,
        seconds=seconds,
        cpu_seconds=joules / 30,
        joules=dict.fromkeys(classes, shared),
        classes=classes,
        started="2026-01-02T03:04:05+00:00",
        machine_cpu_seconds=joules / 30 + 0.08 * 2 * seconds,
        steal_seconds=0.011 * 2 * seconds,
        gpu_celsius=61.0 if "gpu" in classes else None,
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
        windows=tuple(
            window(phase, 0, joules * share, classes)
            for phase, share in (DENSE_SHARES if arm == "dense" else SHARES).items()
        ),
        method=method(classes),
        accuracy=accuracy_of(arm, pair),
        validation_accuracy=0.985,
        parameters=57_000 if arm == "dense" else 21_000,
        macs=3_400_000 if arm == "dense" else 1_300_000,
        epochs=float(epochs),
        drawn_epoch=None if arm == "dense" else 8.0,
        stopped_by="the budget" if arm == "dense" else "validation_loss, no better for 4 readings",
        history=history,
        given="the widths of the ticket" if arm == "shape-scratch" else "",
        logical_cpus=2,
        notes=("a note of <b>run</b> & co",) if arm == "ticket" and pair == 0 else (),
    )


def accuracy_of(arm: str, pair: int) -> float:
    return 0.9940 + 0.0006 * (pair % 3) - (0.0012 if arm != "dense" else 0.0)


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


def comparison(
    *,
    factor: float = 1.0,
    inference_factor: float | None = None,
    arms: int = 2,
    pairs: int = 6,
    inference: bool = True,
    grid: bool = False,
    gpu: bool = False,
) -> ComparisonRecord:
    """Return a comparison in which the ticket takes 0.57 · ``factor`` of the dense run."""
    classes = ON_GPU if gpu else ON_CPU
    takes = {
        arm: take * (factor if place else 1.0)
        for place, (arm, take) in enumerate(zip(ARMS[:arms], TAKES, strict=False))
    }
    noise = {
        (arm, pair): NOISE[pair % 8] * NOISE[(pair + place) % 8] ** 0.5
        for place, arm in enumerate(takes)
        for pair in range(pairs)
    }
    runs = tuple(
        run(arm, pair, pair * arms + place, 1200.0 * take * noise[arm, pair], min(take, 1.2), classes)
        for pair in range(pairs)
        for place, (arm, take) in enumerate(takes.items())
    )
    served = 1.0 if inference_factor is None else inference_factor / factor
    spans = tuple(
        InferenceSpan(
            arm=arm,
            seed=pair,
            pair=pair,
            batch=batch,
            items=1_000_000,
            window=window(
                "inference",
                0,
                joules * noise[arm, pair] * (take if arm == "dense" else take * served),
                classes,
            ),
        )
        for arm, take in takes.items()
        for pair in range(pairs)
        for batch, joules in ((1, 4800.0), (64, 900.0))
        if inference
    )
    warm_up = "a short run to warm up, thrown away"
    return ComparisonRecord(
        design=design(tuple(takes), pairs, "cuda" if gpu else "cpu", inference),
        runs=runs,
        idle=tuple(IdleSpan(pair=pair, window=window("idle", pair, 640.0, classes)) for pair in range(pairs)),
        inference=spans,
        broken_off=tuple(
            BrokenOff(
                arm=arm,
                seed=0,
                pair=pair,
                position=position,
                windows=(window("train", 0, joules, classes),),
                why=why,
            )
            for arm, pair, position, joules, why in (
                ("ticket", 0, 1, 90.0, ""),
                ("warm-up", None, 0, 12.0, warm_up),
            )
        ),
        choices=Choices(
            grid=Grid(grams_per_kwh=56.0, country="FRA", year=2023, source="Ember") if grid else None,
            per_day=10_000.0 if inference else None,
        ),
        pairs_asked=pairs,
        notes=("a pair was run again",),
    )


def assessed(
    found: ComparisonRecord, standing: Standing | None = None, wall_fit: WallFit | None = None
) -> Savings:
    """Return the assessment, one run left out of it where there are enough, and one more pair count.

    With a ``standing`` the verdict has it whatever the figures are, and no other claim is a saving.
    """
    savings = assess(found, wall_fit)
    left_out = 2 if len(found.runs) >= 8 else None
    claims = savings.claims
    if standing is not None:
        others = Standing.WITHIN_NOISE if standing.is_saving else standing
        claims = tuple(
            replace(each, standing=others if place else standing) for place, each in enumerate(claims)
        )
        if claims[0].change is not None:
            claims = tuple(
                replace(each, statement=sentence_of(each, found.design.quality)) for each in claims
            )
    return replace(
        savings,
        claims=claims,
        may_claim=may_claim(claims, savings.grade),
        needed=(*savings.needed, Needed(0.001, None)),
        runs=tuple(
            replace(line, counted=False, why_not="others took 31 % of the machine")
            if line.position == left_out
            else line
            for line in savings.runs
        ),
    )


def savings(standing: Standing | None = Standing.SAVING_MODELLED, **settings: Any) -> Savings:
    """Return a comparison assessed; ``settings`` are those of ``comparison``."""
    fit = WallFit(slope=1.2, offset_watts=38.0, r_squared=0.971, windows=40, interval_seconds=1.0)
    return assessed(comparison(**settings), standing, fit if settings.get("gpu") else None)


def metered(found: ComparisonRecord, method: EnergyMethod) -> ComparisonRecord:
    """Return a comparison with the same joules from another meter; what was broken off is unchanged."""

    def meter(before: Window) -> Window:
        joules = (before.total_joules or 0.0) / max(len(method.classes), 1)
        return replace(before, joules=dict.fromkeys(method.classes, joules), classes=method.classes)

    return replace(
        found,
        runs=tuple(
            replace(each, method=method, windows=tuple(map(meter, each.windows))) for each in found.runs
        ),
        idle=tuple(replace(each, window=meter(each.window)) for each in found.idle),
        inference=tuple(replace(each, window=meter(each.window)) for each in found.inference),
    )


def simulated(*, grid: bool = False) -> Savings:
    """Return a comparison on the meter for tests."""
    classes = dict.fromkeys(ON_CPU, EnergyClass.SIMULATED)
    fake = EnergyMethod(meter="fake", scope="simulated", classes=classes, excluded=("everything real",))
    return assessed(metered(comparison(grid=grid), fake))


def at_the_wall(*, fit: bool = False) -> Savings:
    """Return a comparison with a wall meter's joules, and the line that could be fitted, or none."""
    classes = {"wall": EnergyClass.MEASURED}
    plug = EnergyMethod(meter="wall meter", scope="machine", classes=classes, details={"interval": "1 s"})
    found = metered(comparison(), plug)
    found = replace(found, choices=replace(found.choices, wall_meter="wall.csv"))
    line = WallFit(slope=1.2, offset_watts=-3.0, r_squared=0.97, windows=40, interval_seconds=1.0)
    return assessed(found, wall_fit=line if fit else None)


def unmetered() -> Savings:
    """Return a comparison in which nothing was metered: no joules anywhere."""
    nothing = EnergyMethod(meter="none", scope="none", excluded=("all energy",))
    found = metered(comparison(inference=False), nothing)
    runs = tuple(
        replace(each, history=tuple(replace(point, joules=None) for point in each.history))
        for each in found.runs
    )
    return assessed(replace(found, runs=runs, idle=(), broken_off=()))


def invalid() -> Savings:
    """Return a comparison of which one window broke an invariant."""
    found = comparison()
    first, *others = found.runs
    broken = replace(first.windows[0], valid=False, fault="no time passed")
    return assessed(replace(found, runs=(replace(first, windows=(broken, *first.windows[1:])), *others)))


EXAMPLES: dict[str, Savings] = {
    "saving": savings(),
    "saving on a GPU, seven arms, a grid": savings(arms=7, pairs=8, grid=True, gpu=True),
    "costs more": savings(None, factor=2.4),
    "too few pairs": savings(None, pairs=3),
    "invalid": invalid(),
    "within noise, no inference": savings(None, factor=1.72, inference=False),
    "simulated": simulated(),
    "nothing metered": unmetered(),
    "at the wall": at_the_wall(),
}

ALL_OF_IT = "saving on a GPU, seven arms, a grid"


@cache
def written(example: str) -> dict[str, str]:
    """Return the files of an example's report: written once, because plotting takes seconds."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write_report(EXAMPLES[example], Path(folder))
        return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in paths}
