"""Comparisons made by hand: what an arm took is given, everything else is as a sound run has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tpsprune.records import (
    ArmRun,
    ComparisonRecord,
    Design,
    EnergyClass,
    EnergyMethod,
    IdleSpan,
    InferenceSpan,
    Window,
)

MEASURED = EnergyMethod(
    meter="codecarbon", scope="machine", classes={"cpu": EnergyClass.MEASURED}, details={}
)
MODELLED = EnergyMethod(
    meter="codecarbon",
    scope="machine",
    classes={"cpu": EnergyClass.MODELLED, "ram": EnergyClass.CONSTANT},
    details={"cpu_rated_watts": "8", "ram_watts": "20"},
)


def design(*arms: str, **changes: Any) -> Design:
    base = Design(
        name="made-up",
        arms=arms or ("dense", "small"),
        first_seed=0,
        order_seed=0,
        tolerance_share=0.01,
        required_accuracy=0.0,
        alpha=0.05,
        inference_seconds=0.0,
        inference_batches=(),
        idle_seconds=10.0,
        foreign_load_share=0.2,
        patience=5,
        recipe_text="",
        recipe_sha256="0" * 64,
        device="cpu",
        machine={},
        versions={},
        begun="2026-01-01T00:00:00Z",
        command="tpsprune compare made-up",
        pairs=6,
    )
    return replace(base, **changes)


def window(joules: float, *, phase: str = "train", seconds: float = 20.0, **changes: Any) -> Window:
    base = Window(
        phase=phase,
        index=0,
        attempt=0,
        seconds=seconds,
        cpu_seconds=seconds,
        joules={"cpu": joules},
        classes={"cpu": EnergyClass.MEASURED},
        started="2026-01-01T00:00:00.000Z",
    )
    return replace(base, **changes)


def run(arm: str, pair: int, joules: float, accuracy: float = 0.9, **changes: Any) -> ArmRun:
    base = ArmRun(
        arm=arm,
        seed=pair,
        pair=pair,
        position=2 * pair + (arm != "dense"),
        windows=(window(joules),),
        method=MEASURED,
        accuracy=accuracy,
        validation_accuracy=accuracy,
        parameters=100,
        macs=1000 if arm == "dense" else 500,
        epochs=10.0,
        stopped_by="deadline",
        logical_cpus=2,
    )
    return replace(base, **changes)


def inference(arm: str, pair: int, batch: int, joules: float, **changes: Any) -> InferenceSpan:
    span = InferenceSpan(
        arm=arm, seed=pair, pair=pair, batch=batch, items=1000, window=window(joules, phase="inference")
    )
    return replace(span, **changes)


def idle(pair: int, watts: float = 1.0) -> IdleSpan:
    return IdleSpan(pair=pair, window=window(10 * watts, phase="idle", seconds=10.0))


def comparison(
    dense: Sequence[float], ticket: Sequence[float], *, drop: float = 0.0, asked: int | None = None
) -> ComparisonRecord:
    """Return a comparison of two arms by the joules of their runs; the ticket loses ``drop`` of accuracy."""
    runs = []
    for pair, (before, after) in enumerate(zip(dense, ticket, strict=True)):
        runs += [run("dense", pair, before), run("small", pair, after, 0.9 - drop)]
    pairs = len(dense) if asked is None else asked
    return ComparisonRecord(design=design(), runs=tuple(runs), pairs_asked=pairs)


def changed(found: ComparisonRecord, arm: str, pair: int, **changes: Any) -> ComparisonRecord:
    """Return the comparison with one run of it changed."""
    runs = (replace(each, **changes) if (each.arm, each.pair) == (arm, pair) else each for each in found.runs)
    return replace(found, runs=tuple(runs))
