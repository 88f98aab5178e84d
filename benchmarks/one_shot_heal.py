"""Label-free repair against the same number of ordinary training steps."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator

import torch
from torch import nn

from benchmarks.one_shot_cuts import TEST_ITEMS, cut
from benchmarks.one_shot_methods import Method, default_widths
from benchmarks.one_shot_rows import Row
from benchmarks.zoo.tasks import TASKS, Task
from benchmarks.zoo.trained import accuracy, dataset, sample_calibration, trained
from tpsprune.pruning import Extraction
from tpsprune.recipe.train import Train
from tpsprune.training import Execution, fit, make_optimizer

CUT = "heal:as cut"
HEALED = "heal:healed"
OURS_TRAINED = "heal:trained"
MAGNITUDE_TRAINED = "heal:magnitude, trained"
HEAL_METHODS = (CUT, HEALED, OURS_TRAINED, MAGNITUDE_TRAINED)


def heal_rows(keys: list[tuple[str, int, str, float]], steps: int) -> Iterator[Row]:
    """Yield a row for each key of one net and seed.

    ``healed`` sees the calibration without labels; both ``trained`` see the whole training split with labels.
    """
    name, seed = keys[0][:2]
    task = TASKS[name]
    model = trained(task, seed)
    seen = sample_calibration(task, seed)
    ours = Method("interpolation", default_widths(), "fold")
    magnitude = Method("magnitude", "uniform", "as cut")
    # Every key of ours at one share begins with the same cut.
    cuts: dict[tuple[Method, float], Extraction] = {}
    for net, number, key, share in keys:
        started = time.perf_counter()
        choice = (magnitude if key == MAGNITUDE_TRAINED else ours), share
        try:
            if choice not in cuts:
                cuts[choice] = cut(model, seen, choice[0], share)
            ticket = copy.deepcopy(cuts[choice].ticket)
            if key == HEALED:
                _heal(ticket, model, seen.batches, steps, seed)
            elif key != CUT:
                train_on(task, ticket, steps, seed)
        except Exception as fault:  # noqa: BLE001 - one fault must not end an hour's benchmark
            yield Row(
                net=net, seed=number, method=key, share=share, problem=f"{type(fault).__name__}: {fault}"
            )
            continue
        yield Row(
            net=net,
            seed=number,
            method=key,
            share=share,
            score=accuracy(task, ticket, TEST_ITEMS),
            macs_share=cuts[choice].macs_share,
            seconds=time.perf_counter() - started,
        )


def train_on(task: Task, model: nn.Module, steps: int, seed: int) -> None:
    """Train a cut model in place for so many steps, as anyone would: AdamW at 1e-3, one cycle."""
    held = dataset(task)
    settings = Train(epochs=1, batch_size=128, learning_rate=1e-3)
    execution = Execution(torch.device("cpu"), None, channels_last=False)
    for _ in fit(
        model,
        make_optimizer(model, settings),
        held.train.inputs,
        held.train.labels,
        prepare=held.prepare,
        settings=settings,
        execution=execution,
        seed=seed,
        first_step=0,
        last_step=steps,
        total_steps=steps,
    ):
        pass


def _heal(ticket: nn.Module, dense: nn.Module, batches: list[torch.Tensor], steps: int, seed: int) -> None:
    from tpsprune.pruning.repair import repair

    for _ in repair(ticket, dense, batches, steps=steps, learning_rate=1e-3, seed=seed):
        pass
