"""What retrains a cut model: all weights, its head, or low-rank factors; with a teacher and without.

python -m benchmarks.retrain                       # reports/retrain.md: some half an hour of one core
python -m benchmarks.retrain --nets digits         # printed: a minute
python -m benchmarks.retrain --rates               # printed: how the rates of CUTS were chosen
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import torch
from torch import Tensor, nn

from benchmarks.zoo.tasks import TASKS, Task
from benchmarks.zoo.trained import accuracy, dataset, sample_calibration, trained
from tpsprune.data import Split
from tpsprune.pruning import extract
from tpsprune.recipe.prune import Macs, Prune
from tpsprune.recipe.train import Retrain, Train
from tpsprune.training import (
    RAMP_SHARE,
    Adapter,
    Execution,
    Teacher,
    evaluate,
    fit,
    make_optimizer,
    state_by_name,
    steps_per_epoch,
)

CPU: Final = Execution(torch.device("cpu"), None, channels_last=False)
RATES: Final = (1e-3, 4e-3, 1.6e-2, 6.4e-2)
"""Of these each way has the one that does best, without a teacher, on the validation split of seed 0."""
SEEDS: Final = (0, 1, 2)
RANK: Final = Retrain().adapter_rank
REPORT = Path(__file__).parents[1] / "reports" / "retrain.md"


@dataclass(frozen=True, slots=True)
class Cut:
    """A net, the share of its multiply-accumulates that is left, and for how many epochs it is retrained.

    ``longer``: epochs without a teacher that take about the processor time of ``epochs`` with one. ``rates``:
    of each of ``WAYS``.
    """

    net: str
    share: float
    epochs: int
    longer: int
    rates: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Way:
    """What trains, from which first factors; how much of the loss a teacher has, and at which temperature."""

    title: str
    adapter: Any = "none"
    start: float = 0.1
    share: float = 0.0
    temperature: float = 2.0

    def taught(self, share: float, temperature: float) -> Way:
        """Return the way with a teacher."""
        return Way(self.title, self.adapter, self.start, share, temperature)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A ticket retrained in one way: test accuracy, agreement with the dense model, and what it took."""

    way: Way
    seed: int
    rate: float
    accuracy: float
    agreement: float
    numbers: int
    moments: int
    cpu_seconds: float


CUTS: Final = (
    Cut("digits", 0.05, 3, 5, (0.064, 0.016, 0.016, 0.016, 0.064)),
    Cut("fashion", 0.1, 1, 3, (0.004, 0.064, 0.016, 0.064, 0.064)),
)
WAYS: Final = (
    Way("all weights"),
    Way("head", "head"),
    Way("lora", "lora"),
    Way("singlora", "singlora"),
    Way("singlora as published", "singlora", 1.0),
)
LONGER: Final = Way("all weights, longer")
TITLES: Final = ("all weights", LONGER.title, *(way.title for way in WAYS[1:]))
TEACHER: Final = (Retrain().teacher_share, Retrain().teacher_temperature)
STRONG: Final = (0.9, 4.0)
"""A second teacher, of all weights only: more of the loss, softer."""


WORDS: Final = f"""\
# What retrains a cut model

`python -m benchmarks.retrain` on one thread, PyTorch {torch.__version__}, three nets and draws of
calibration data each. A ticket, cut without repair, is retrained in copies for equally many epochs: AdamW,
one cycle, weight decay 0.01. The rate is the best of {", ".join(f"{rate:g}" for rate in RATES)} on the
validation split of seed 0, chosen without a teacher (`--rates`). Rank {RANK}; SingLoRA's change is let in
over a tenth of the steps.

*Teacher*: its share of the loss, and τ. *Agrees*: the share of test items put into the class that the dense
model puts them into. *Numbers*: that train. *Moments*: that the optimiser holds. *CPU s*: processor seconds
of the retraining alone, which a teacher makes longer; *longer* is without one for about that time.
"""


def rows_of(cut: Cut) -> Iterator[Row | tuple[int, float, float, float]]:
    """Yield for each seed the accuracy of the dense model, of the cut and its agreement, then a row a way.

    Ways take turns, in reversed order at every other seed.
    """
    task = TASKS[cut.net]
    rates = dict(zip((way.title for way in WAYS), cut.rates, strict=True)) | {LONGER.title: cut.rates[0]}
    taught = [way.taught(*TEACHER) for way in WAYS]
    ways = [each for pair in zip(WAYS, taught, strict=True) for each in pair]
    ways += [WAYS[0].taught(*STRONG), LONGER]
    for seed in SEEDS:
        dense, ticket = _dense_and_cut(task, cut, seed)
        wanted = _classes(task, dense)
        yield seed, accuracy(task, dense), accuracy(task, ticket), _agreement(task, ticket, wanted)
        for way in ways if seed % 2 == 0 else reversed(ways):
            rate = rates[way.title]
            model, numbers, moments, spent = retrained(task, cut, way, ticket, dense, rate=rate, seed=seed)
            yield Row(
                way=way,
                seed=seed,
                rate=rate,
                accuracy=accuracy(task, model),
                agreement=_agreement(task, model, wanted),
                numbers=numbers,
                moments=moments,
                cpu_seconds=spent,
            )


def retrained(
    task: Task, cut: Cut, way: Way, ticket: nn.Module, dense: nn.Module, *, rate: float, seed: int
) -> tuple[nn.Module, int, int, float]:
    """Return a retrained copy, the count of numbers trained, of the optimiser's, and processor seconds."""
    held = dataset(task)
    epochs = cut.longer if way == LONGER else cut.epochs
    settings = Train(
        epochs=epochs, batch_size=task.train.batch_size, learning_rate=rate, weight_decay=0.01, threads=1
    )
    steps = epochs * steps_per_epoch(len(held.train), settings)
    model = copy.deepcopy(ticket).requires_grad_(requires_grad=True)
    teacher = Teacher(dense.eval(), way.share, way.temperature) if way.share else None
    torch.manual_seed(seed)
    started = time.process_time()
    adapter = None
    if way.adapter != "none":
        ramp_steps = max(1, round(RAMP_SHARE * steps))
        adapter = Adapter(model, way.adapter, rank=RANK, ramp_steps=ramp_steps, seed=seed, start=way.start)
    trains = adapter or model
    optimizer = make_optimizer(trains, settings)
    for _ in fit(
        model,
        optimizer,
        held.train.inputs,
        held.train.labels,
        prepare=held.prepare,
        settings=settings,
        execution=CPU,
        seed=seed,
        first_step=0,
        last_step=steps,
        total_steps=steps,
        teacher=teacher,
        adapter=adapter,
    ):
        pass
    spent = time.process_time() - started
    moments = state_by_name(optimizer, trains).values()
    kept = sum(each.numel() for tensors in moments for each in tensors.values() if each.ndim)
    return model, sum(each.numel() for each in trains.parameters()), kept, spent


def _dense_and_cut(task: Task, cut: Cut, seed: int) -> tuple[nn.Module, nn.Module]:
    dense = trained(task, seed)
    settings = Prune(target=Macs(cut.share), quality="fast")
    return dense, extract(dense, sample_calibration(task, seed).batches, settings).ticket


def print_rates(cut: Cut) -> None:
    """Print what each rate gives, for each way, on the validation split of seed 0."""
    task = TASKS[cut.net]
    split = dataset(task).validation
    dense, ticket = _dense_and_cut(task, cut, SEEDS[0])
    for way in WAYS:
        found = [
            _score(task, retrained(task, cut, way, ticket, dense, rate=rate, seed=SEEDS[0])[0], split)
            for rate in RATES
        ]
        print(
            f"{cut.net}, {way.title}:",
            *(f"{rate:g} {score:.4f}" for rate, score in zip(RATES, found, strict=True)),
        )


def _score(task: Task, model: nn.Module, split: Split) -> float:
    prepare = dataset(task).prepare
    return evaluate(model, split.inputs, split.labels, prepare=prepare, execution=CPU).accuracy


def _agreement(task: Task, model: nn.Module, wanted: Tensor) -> float:
    """Return the share of test items that a model puts into the class wanted."""
    return _classes(task, model).eq(wanted).double().mean().item()


@torch.inference_mode()
def _classes(task: Task, model: nn.Module) -> Tensor:
    held = dataset(task)
    model.eval()
    return torch.cat([model(held.prepare(part)).argmax(1) for part in held.test.inputs.split(1000)])


def table(cut: Cut, found: Sequence[Row | tuple[int, float, float, float]]) -> list[str]:
    """Return the lines of a net's table."""
    begun = [each for each in found if isinstance(each, tuple)]
    rows = sorted((each for each in found if isinstance(each, Row)), key=lambda row: row.seed)
    dense, as_cut = [each[1] for each in begun], [each[2] for each in begun]
    agrees = fmean(each[3] for each in begun)
    lines = [
        f"## {TASKS[cut.net].title}, at {cut.share:g} of the operations, epochs of retraining: {cut.epochs}",
        "",
        "| trains | teacher | accuracy, by seed | mean | agrees | numbers | moments | rate | CPU s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| *dense* | | {_each(dense)} | {fmean(dense):.4f} | | | | | |",
        f"| *as cut* | | {_each(as_cut)} | {fmean(as_cut):.4f} | {agrees:.4f} | | | | |",
    ]
    for way in sorted({row.way for row in rows}, key=lambda way: (TITLES.index(way.title), way.share)):
        mine = [row for row in rows if row.way == way]
        right = [row.accuracy for row in mine]
        cells = [
            way.title,
            f"{way.share:g}, τ {way.temperature:g}" if way.share else "–",
            _each(right),
            f"{fmean(right):.4f}",
            f"{fmean(row.agreement for row in mine):.4f}",
            f"{round(fmean(row.numbers for row in mine)):,}",
            f"{round(fmean(row.moments for row in mine)):,}",
            f"{mine[0].rate:g}",
            f"{fmean(row.cpu_seconds for row in mine):.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _each(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def main() -> None:
    """Measure, print, and of all nets write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [cut.net for cut in CUTS]
    parser.add_argument("--nets", nargs="+", default=names, choices=names)
    parser.add_argument("--rates", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cuts = [cut for cut in CUTS if cut.net in options.nets]
    if options.rates:
        for cut in cuts:
            print_rates(cut)
        return
    lines = []
    for cut in cuts:
        found = []
        for each in rows_of(cut):
            print(each, flush=True)
            found.append(each)
        lines += table(cut, found)
        print("\n".join(lines), flush=True)
    if options.nets == names:
        REPORT.write_text("\n".join([WORDS, *lines]), encoding="utf-8")


if __name__ == "__main__":
    main()
