"""One run, one window of answers and one of idling, as the journal of a comparison keeps them."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

import torch
from torch import nn

from tpsprune import energy, measure
from tpsprune.energy import AbstractMeter
from tpsprune.errors import CannotWriteError, DivergedError, PruneError, RunFolderError
from tpsprune.numerics.trees import Tree, at
from tpsprune.pipeline.arms import Found, run_arm
from tpsprune.pipeline.bench import Bench, set_up
from tpsprune.pipeline.load import trained_from
from tpsprune.recipe import Recipe
from tpsprune.records import (
    ArmRun,
    CoursePoint,
    EnergyMethod,
    Event,
    Finished,
    IdleSpan,
    InferenceSpan,
    Progress,
    Trained,
    Window,
)
from tpsprune.runs import ComparisonFolder, RunFolder

__all__ = ["Slot", "answers_of", "idling", "made_in", "run_of"]

HASH_BLOCK: Final = 2**20
WARM_UP_SECONDS: Final = 0.5
Cell: TypeAlias = tuple[str, int]
"""An arm and a batch size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One run that is due: which arm, on which seed, in which pair, at which place in the order."""

    arm: str
    seed: int
    pair: int
    position: int

    @property
    def folder(self) -> str:
        """Where below the comparison's folder the run's own is made."""
        return f"runs/{self.position:03}-{self.arm}-seed-{self.seed}"


def run_of(
    slot: Slot, recipe: Recipe, folder: ComparisonFolder, *, found: Found | None, device: str
) -> Generator[Event, None, ArmRun]:
    """Run what is due and return it as measured; a run that ends without a model says why.

    Training that leaves the finite numbers, and a cut that is refused, are outcomes of the arm; anything
    else ends the comparison.
    """
    seeded = replace(recipe, seed=slot.seed)
    out = folder.path / slot.folder
    last: Event | None = None
    course: list[CoursePoint] = []
    failure = ""
    try:
        for event in run_arm(slot.arm, seeded, out, found=found, device=device):
            last = event
            if isinstance(event, Progress) and event.read:
                course.append(_point(event))
            if not isinstance(event, Finished | Trained):
                yield event
    except DivergedError as error:
        failure = str(error.__cause__ or error)
    except PruneError as error:
        failure = str(error)
    except CannotWriteError as error:
        raise CannotWriteError(f"{error.__cause__ or error}, then give the same command again") from error
    run = made_in(out)
    measured = ArmRun(
        arm=slot.arm,
        seed=slot.seed,
        pair=slot.pair,
        position=slot.position,
        windows=() if run is None else tuple(run.energy.parsed(Window)),
        method=_method(recipe),
        course=tuple(course),
        failure=failure,
        given="" if found is None else "the shape, or the widths, that the ticket's run found",
        folder="" if run is None else str(run.path.relative_to(folder.path)),
        logical_cpus=os.cpu_count() or 1,
    )
    if failure:
        return measured
    assert run is not None, "a run that ended well has made a folder"
    return _with_outcome(measured, run, last)


def _with_outcome(measured: ArmRun, run: RunFolder, last: Event | None) -> ArmRun:
    validation = measured.course[-1].validation_accuracy if measured.course else None
    match last:
        case Finished(outcome=outcome):
            return replace(
                measured,
                method=outcome.method,
                accuracy=outcome.ticket.accuracy,
                validation_accuracy=validation,
                parameters=outcome.ticket.parameters,
                macs=outcome.ticket.macs,
                epochs=outcome.stopped.epoch,
                drawn_epoch=outcome.drawn.epoch,
                stopped_by=outcome.stopped.rule,
                notes=outcome.notes,
                weights_sha256=_sha256(_weights_of(run)),
            )
        case Trained():
            return replace(
                measured,
                accuracy=last.figures.accuracy,
                validation_accuracy=validation,
                parameters=last.figures.parameters,
                macs=last.figures.macs,
                epochs=last.stopped.epoch,
                drawn_epoch=last.drawn_epoch,
                stopped_by=last.stopped.rule,
                weights_sha256=_sha256(_weights_of(run)),
            )
        case _:
            raise AssertionError("a run without a failure ends with what came out")


def answers_of(
    runs: Sequence[ArmRun], recipe: Recipe, folder: ComparisonFolder, device: str, *, done: set[Cell]
) -> Iterator[InferenceSpan]:
    """Yield, for each batch size and each run, what a window of answers took; arms take turns, ABBA.

    What is ``done`` is not done again.

    Models are built anew from their files, which must be those that the runs left. The batch is of test
    items, on the device, prepared as for evaluation; half a second of answers that do not count comes first.

    Raises:
        RunFolderError: a run's folder is gone, or holds another model than the one it left.
    """
    rules = recipe.compare
    due = [run for run in runs if any((run.arm, batch) not in done for batch in rules.inference_batches)]
    with set_up(recipe, device, cuts=False) as bench, _metering(recipe) as meter:
        models = {run.arm: bench.execution.place(_left_by(run, folder, bench)) for run in due}
        order = list(due)
        for batch in rules.inference_batches:
            items_n = _batch(bench, batch)
            for run in (run for run in order if (run.arm, batch) not in done):
                with bench.execution.autocasting():
                    measure.answer_for(
                        min(WARM_UP_SECONDS, rules.inference_seconds), models[run.arm], items_n
                    )
                    with meter.window(f"answers at batch {batch}") as span:
                        items = measure.answer_for(rules.inference_seconds, models[run.arm], items_n)
                yield InferenceSpan(
                    arm=run.arm, seed=run.seed, pair=run.pair, batch=batch, items=items, window=span.window
                )
            order.reverse()


def _left_by(run: ArmRun, folder: ComparisonFolder, bench: Bench) -> nn.Module:
    """Return the model that a run left, from its files, once they are found to be the ones it wrote."""
    path = RunFolder(folder.path / run.folder)
    weights = _weights_of(path)
    if not weights.is_file() or _sha256(weights) != run.weights_sha256:
        raise RunFolderError(
            f"{weights} is not what the run of '{run.arm}', seed {run.seed}, left: put it back, or begin "
            "anew with another --out"
        )
    return trained_from(path, bench.dataset.facts)


def _weights_of(run: RunFolder) -> Path:
    return run.ticket if run.plan.is_file() else run.dense


def _batch(bench: Bench, items: int) -> Tree:
    test = bench.dataset.test
    index = torch.arange(items, device=test.labels.device) % len(test)
    return bench.execution.arrange(bench.dataset.prepare(at(test.inputs, index)))


def idling(pair: int, recipe: Recipe) -> IdleSpan:
    """Watch the machine do nothing for ``compare.idle_seconds``, in this process, through the same meter."""
    with _metering(recipe) as meter:
        with meter.window("idle") as span:
            time.sleep(recipe.compare.idle_seconds)
        return IdleSpan(pair=pair, window=span.window)


@contextmanager
def _metering(recipe: Recipe) -> Iterator[AbstractMeter]:
    meter = energy.build(recipe.energy, 0)
    try:
        yield meter
    finally:
        meter.shut()


def _method(recipe: Recipe) -> EnergyMethod:
    with _metering(recipe) as meter:
        return meter.method()


def _point(event: Progress) -> CoursePoint:
    return CoursePoint(
        epoch=event.epoch,
        joules=event.joules,
        validation_accuracy=event.validation_accuracy,
        signals=dict(event.signals),
    )


def made_in(out: Path) -> RunFolder | None:
    """Return the one run folder below ``out``; ``None`` where none was made."""
    found = sorted(path for path in out.iterdir() if path.is_dir()) if out.is_dir() else []
    return RunFolder(found[0]) if found else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()
