"""Label-free repair against the same number of ordinary training steps.

python -m benchmarks.one_shot_heal                       # reports/repair.md: half an hour on one core
python -m benchmarks.one_shot_heal --nets digits         # printed: a minute
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.one_shot_cuts import TEST_ITEMS, cut
from benchmarks.one_shot_methods import Method, default_widths
from benchmarks.one_shot_rows import Row
from benchmarks.zoo.tasks import TASKS, Task
from benchmarks.zoo.trained import accuracy, dataset, sample_calibration, trained
from tpsprune.pruning import Extraction, repair_ticket
from tpsprune.recipe.prune import Prune
from tpsprune.recipe.train import Train
from tpsprune.training import Execution, fit, make_optimizer, shuffled

CUT = "heal:as cut"
HEALED = "heal:healed"
BEST = "heal:best"
OURS_TRAINED = "heal:trained"
MAGNITUDE_TRAINED = "heal:magnitude, trained"
HEAL_METHODS = (CUT, HEALED, OURS_TRAINED, MAGNITUDE_TRAINED)
WORDS = {
    CUT: "as cut",
    HEALED: "repaired",
    BEST: "best",
    OURS_TRAINED: "trained",
    MAGNITUDE_TRAINED: "magnitude, trained",
}
NETS = ("digits", "fashion", "resnet8", "vit")
SHARES = (0.5, 0.25)
REPORT = Path(__file__).parents[1] / "reports" / "repair.md"


def heal_rows(keys: list[tuple[str, int, str, float]], steps: int) -> Iterator[Row]:
    """Yield a row for each key of one net and seed; its seconds are the processor's, after the cut.

    ``healed`` sees the training split without labels, ``best`` for as long as that helps; both ``trained``
    see it with labels.
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
        choice = (magnitude if key == MAGNITUDE_TRAINED else ours), share
        try:
            if choice not in cuts:
                cuts[choice] = cut(model, seen, choice[0], share)
            ticket = copy.deepcopy(cuts[choice].ticket)
            cost = time.process_time()
            if key in (HEALED, BEST):
                quality = Prune(quality="best" if key == BEST else "balanced")
                heal(replace(cuts[choice], ticket=ticket), task, model, seen.batches, quality, steps)
            elif key != CUT:
                train_on(task, ticket, steps, seed)
            spent = time.process_time() - cost
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
            seconds=spent,
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


def heal(
    found: Extraction, task: Task, dense: nn.Module, batches: list[Tensor], how: Prune, steps: int
) -> None:
    """Repair a ticket in place as ``tpsprune prune`` does: on augmented training items, without labels."""
    held = dataset(task)
    execution = Execution(torch.device("cpu"), None, channels_last=False)

    def augmented(items: int, seed: int) -> Iterator[Any]:
        drawn = shuffled(
            held.train.inputs,
            len(held.train),
            prepare=held.prepare,
            execution=execution,
            size=items,
            seed=seed,
        )
        return (batch for _, batch in drawn)

    for _ in repair_ticket(found, dense, batches, how, steps=steps, fresh=augmented):
        pass


def main() -> None:
    """Measure, print, and of all nets write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(TASKS))
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    head = ("net", "kept", *WORDS.values())
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join(['---'] * len(head))} |"]
    print("\n".join(lines), flush=True)
    for net in options.nets:
        dense = accuracy(TASKS[net], trained(TASKS[net], 0), TEST_ITEMS)
        for share in SHARES:
            rows = heal_rows([(net, 0, method, share) for method in WORDS], options.steps)
            cells = [
                f"{row.score:.3f}, {row.seconds:.0f} s" if row.score is not None else str(row.problem)
                for row in rows
            ]
            lines.append(f"| {net}, dense {dense:.3f} | {share:g} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    if options.nets == list(NETS):
        REPORT.write_text(
            f"# {options.steps} steps of repair\n\n"
            f"`python -m benchmarks.one_shot_heal` on one thread, PyTorch {torch.__version__}. Test accuracy "
            "(at most 2,000 items) of one dense net and one draw of calibration data, and processor seconds "
            "after the cut. *Repaired* has no labels; *best* repairs for as long as a round brings 2 %; "
            f"*trained* are {options.steps} steps with labels, AdamW at 1e-3 with one cycle, twice the items "
            "a step and no dense model to run.\n\n" + "\n".join(lines) + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
