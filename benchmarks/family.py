"""A family of four sizes: what it takes beside one extraction, and how good each size is beside one alone.

    python -m benchmarks.family                     # reports/family.md: some ten minutes on one core
    python -m benchmarks.family --nets lite0 crepe   # printed

Processor seconds on one thread of one extraction at half, of the four sizes of a family, and of four
extractions by themselves, by turns, medians; without repair, and without evaluations. The scores of the sizes
stand beside those of extractions of the same share, and of torch-pruning's magnitude with batch-norm
statistics computed again.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tpsprune
from benchmarks import real_nets
from benchmarks.zoo.tasks import TASKS
from benchmarks.zoo.trained import accuracy, sample_calibration, trained

REPORT = Path(__file__).parents[1] / "reports" / "family.md"
SIZES = (0.75, 0.5, 0.35, 0.25)
ONE = 0.5
TURNS = 3
TEST_ITEMS = 2000
NETS = ("digits", "fashion", "vit", "resnet8", "minilm", "lite0")
MAGNITUDE: dict[str, Any] = {"units": "magnitude", "widths": "uniform", "compensate": False}


@dataclass(frozen=True)
class Net:
    """A trained net, its calibration data and its score."""

    model: nn.Module
    batches: list[Any]
    score: Callable[[nn.Module], float]


def net_named(name: str) -> Net:
    """Return a trained net of the other benchmarks."""
    if name in TASKS:
        task = TASKS[name]
        return Net(
            trained(task, 0),
            list(sample_calibration(task, 0).batches),
            lambda model: accuracy(task, model, TEST_ITEMS),
        )
    found = real_nets.NETS[name]()
    return Net(found.build(), found.sample(0), found.score)


def seconds_of(job: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor seconds of a job, and what it returned."""
    started = time.process_time()
    found = job()
    return time.process_time() - started, found


def row(name: str) -> tuple[str, list[str]]:
    """Return the line of costs of a net, and the lines of its scores."""
    net = net_named(name)
    ones, families, alones = [], [], []
    for _ in range(TURNS if name in TASKS else 1):
        one, _ = seconds_of(lambda: extracted(net, ONE))
        family, sizes = seconds_of(
            lambda: list(tpsprune.family(net.model, net.batches, sizes=SIZES, quality="fast"))
        )
        alone, each = seconds_of(lambda: [extracted(net, share) for share in SIZES])
        ones.append(one)
        families.append(family)
        alones.append(alone)
    one, family, alone = map(statistics.median, (ones, families, alones))
    cost = f"| {name} | {one:.2f} | {family:.2f} | **{family / one:.2f}** | {alone / one:.2f} |"
    dense = net.score(net.model)
    lines = []
    for share, own, by_itself in zip(SIZES, sizes, each, strict=True):
        rival = extracted(net, share, **MAGNITUDE)
        scores = [net.score(found.ticket) for found in (own, by_itself, rival)]
        figures = " | ".join(f"{score:.4f}" for score in scores)
        lines.append(f"| {name}, dense {dense:.4f} | {share:g} | {figures} |")
    return cost, lines


def extracted(net: Net, share: float, **settings: Any) -> tpsprune.Extraction:
    """Return one extraction, as cut."""
    return tpsprune.extract(net.model, net.batches, tpsprune.Macs(share), quality="fast", **settings)


def main() -> None:
    """Measure, print and, of all nets, write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=[*NETS, "crepe", "silero"])
    names = parser.parse_args().nets
    torch.set_num_threads(1)
    costs = ["| net | one, s | family, s | family / one | four / one |", "| --- | --- | --- | --- | --- |"]
    scores = ["| net | size | of the family | alone | magnitude |", "| --- | --- | --- | --- | --- |"]
    for name in names:
        cost, lines = row(name)
        costs.append(cost)
        scores += lines
        print("\n".join([cost, *lines]), flush=True)
    if names == list(NETS):
        sizes = ", ".join(f"{share:g}" for share in SIZES)
        REPORT.write_text(
            "# A family of four sizes\n\n"
            f"`python -m benchmarks.family` on one thread, PyTorch {torch.__version__}. Sizes {sizes} of the "
            f"multiply-accumulates, as cut. Processor seconds, medians of {TURNS} turns (one of MiniLM and "
            "EfficientNet-Lite0): of one extraction at half, of the four sizes of a family, and of four "
            "extractions one by one.\n\n"
            + "\n".join(costs)
            + "\n\nScores of the sizes, of an extraction of the same share by itself, and of torch-pruning's "
            "magnitude (uniform widths, batch-norm statistics computed again): accuracy, of MiniLM mean "
            "reciprocal rank, of EfficientNet-Lite0 the dense model's first class.\n\n"
            + "\n".join(scores)
            + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
