"""Muon beside AdamW: what a step costs in processor time, and what equally many steps bring.

    python benchmarks/optimizers.py                 # writes reports/optimizers.md
    python benchmarks/optimizers.py --epochs 0.1    # a look

The same weights, data and order of a seed; weight decay and schedule of the recipe, which were chosen for
AdamW. Learning rates are the recipe's, and three on a small language model. One thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Final

from tpsprune import recipe
from tpsprune.numerics.small_samples import Interval, mean_interval
from tpsprune_studies.conduct import describe_machine
from tpsprune_studies.edge_position import TEXT_CHANGES
from tpsprune_studies.setup import at_seed, prepare

TRAINED: Final = (
    ("digits", (), (5e-3,), 10.0),
    ("llama-text", (), (1e-3,), 2.0),
    ("llama-text, 2 layers of 64", TEXT_CHANGES, (1e-3, 3e-3, 1e-2), 1.1),
)
"""Recipe and words about it, its changes, learning rates (a single one is the recipe's own), epochs."""
OPTIMIZERS: Final = ("adamw", "muon")
SEEDS: Final = (1, 2, 3)


def train(
    name: str, changes: Sequence[str], rate: float, optimizer: str, seed: int, epochs: float
) -> tuple[int, float, float, float]:
    """Return steps, processor seconds of one, validation loss and accuracy at the end of a short schedule."""
    found = recipe.read(name.split(",", maxsplit=1)[0], changes)
    prepared = prepare(at_seed(found, seed, optimizer=optimizer, learning_rate=rate))
    steps = max(round(epochs * prepared.steps_per_epoch), 1)
    started = time.process_time()
    for _ in prepared.fit(steps):
        pass
    cpu_seconds = (time.process_time() - started) / steps
    score = prepared.evaluate()
    return steps, cpu_seconds, score.loss, score.accuracy


def spread(found: Interval, form: str) -> str:
    """Return a mean with its interval."""
    return f"{found.mean:{form}} ({found.low:{form}} to {found.high:{form}})"


def main() -> None:
    """Train and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=float, help="epochs of every training, in place of each recipe's")
    parser.add_argument("--out", type=Path, default=Path("reports/optimizers.md"))
    options = parser.parse_args()
    rows = []
    for name, changes, rates, epochs in TRAINED:
        for rate, optimizer in product(rates, OPTIMIZERS):
            found = [train(name, changes, rate, optimizer, seed, options.epochs or epochs) for seed in SEEDS]
            steps, *columns = zip(*found, strict=True)
            seconds, loss, accuracy = map(mean_interval, columns)
            row = [
                name,
                optimizer,
                f"{rate:g}",
                f"{steps[0]:,}",
                f"{1000 * seconds.mean:.1f}",
                spread(loss, ".3f"),
                spread(accuracy, ".3f"),
            ]
            rows.append(f"| {' | '.join(row)} |")
            print(rows[-1], flush=True)
    machine = "\n".join(f"- {key.replace('_', ' ')}: {value}" for key, value in describe_machine().items())
    heads = [
        "recipe",
        "optimiser",
        "rate",
        "steps",
        "CPU-ms a step",
        "validation loss",
        "validation accuracy",
    ]
    options.out.write_text(
        "# Muon beside AdamW\n\n"
        f"Equally many steps on one thread, {len(SEEDS)} seeds, mean (95 % interval). Weight decay and "
        "schedule are the recipe's,\nchosen for AdamW, and so is the learning rate where there is one alone. "
        "Written by `python benchmarks/optimizers.py`.\n\n"
        f"| {' | '.join(heads)} |\n| --- | --- | ---: | ---: | ---: | ---: | ---: |\n"
        + "\n".join(rows)
        + f"\n\n{machine}\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
