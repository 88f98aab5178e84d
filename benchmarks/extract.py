"""What an extraction takes, part by part, beside the forward passes of the dense model over the same data.

    python -m benchmarks.extract                      # reports/extract.md: some ten minutes on one core
    python -m benchmarks.extract --nets crepe bytes   # printed

Eight nets, half of the multiply-accumulates. Processor seconds on one thread, forward passes and extractions
by turns, medians; the parts are shares of the extraction's own clock. Nets are those of the other benchmarks
and two of torchvision, at random.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import real_nets
from benchmarks.zoo.photos import photographs
from benchmarks.zoo.resnet50 import ResNet50, settled
from benchmarks.zoo.tasks import TASKS
from benchmarks.zoo.trained import batches_of, sample_calibration, trained
from tpsprune.data.photographs import crops
from tpsprune.numerics.forward import call_model, evaluation_mode
from tpsprune.pruning import extract
from tpsprune.recipe.prune import Macs, Prune

REPORT = Path(__file__).parents[1] / "reports" / "extract.md"
TURNS, LONG_SECONDS = 3, 10.0
"""A net whose forward passes take longer than that is measured once."""
PARTS = {
    "survey": "survey",
    "statistics": "look",
    "widths": "widths",
    "reconstruction": "walk",
    "verification": "verify",
    "norms": "recalibrate",
}
"""What the report calls the parts, and what ``Extraction.times`` does."""


@dataclass(frozen=True)
class Taken:
    """Median processor seconds of the forward passes and of an extraction, and the seconds of its parts."""

    net: str
    items: int
    forward_seconds: float
    extract_seconds: float
    parts: dict[str, float]

    def row(self) -> str:
        """Return the line of the table."""
        whole = sum(self.parts.values())
        ratios = [
            f"{self.parts[name] / whole * self.extract_seconds / self.forward_seconds:.1f}"
            for name in PARTS.values()
        ]
        ratio = f"**{self.extract_seconds / self.forward_seconds:.1f}**"
        seconds = (f"{self.forward_seconds:.2f}", f"{self.extract_seconds:.2f}")
        return f"| {' | '.join((self.net, str(self.items), *seconds, ratio, *ratios))} |"


def of_task(name: str) -> Callable[[], tuple[nn.Module, list[Any]]]:
    """Return what builds a trained net of ``zoo.tasks`` and its calibration data."""
    return lambda: (trained(TASKS[name], 0), sample_calibration(TASKS[name], 0).batches)


def of_package(name: str) -> Callable[[], tuple[nn.Module, list[Any]]]:
    """Return what builds a net of ``real_nets`` and its calibration data."""

    def build() -> tuple[nn.Module, list[Any]]:
        net = real_nets.NETS[name]()
        return net.build(), net.sample(0)

    return build


def resnet50() -> tuple[nn.Module, list[Any]]:
    """Return ResNet-50 at 224² with 256 crops of photographs, its statistics those of the first 32."""
    torch.manual_seed(0)
    model = ResNet50()
    batches = batches_of(crops(photographs(), 256, 0, 0), 32)
    settled(model, batches[:1])
    return model, batches


def mobilenet() -> tuple[nn.Module, list[Any]]:
    """Return MobileNetV2 at 96² with 256 crops of photographs, its statistics those of the first 64."""
    from tpsprune.models.libraries import help_torchvision

    help_torchvision()
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2()
    batches = [
        nn.functional.interpolate(each, 96) for each in batches_of(crops(photographs(), 256, 0, 0), 64)
    ]
    settled(model, batches[:1])
    return model, batches


NETS = {
    "resnet50": resnet50,
    "mobilenetv2": mobilenet,
    "minilm": of_package("minilm"),
    "bytes": of_package("bytes"),
    "crepe": of_package("crepe"),
    "resnet8": of_task("resnet8"),
    "vit": of_task("vit"),
    "fashion": of_task("fashion"),
}


def take(name: str) -> Taken:
    """Measure one net: forward passes and extractions by turns."""
    model, batches = NETS[name]()
    model.eval()
    forwards, extracts, parts = [], [], []
    for _ in range(TURNS):
        started = time.process_time()
        with torch.no_grad(), evaluation_mode(model):
            for batch in batches:
                call_model(model, batch)
        between = time.process_time()
        extraction = extract(model, batches, Prune(target=Macs(0.5), quality="fast"))
        forwards.append(between - started)
        extracts.append(time.process_time() - between)
        parts.append(asdict(extraction.times))
        if forwards[0] > LONG_SECONDS:
            break
    middle = {part: statistics.median(each[part] for each in parts) for part in PARTS.values()}
    items = sum(len(next(iter(each.values())) if isinstance(each, dict) else each) for each in batches)
    return Taken(name, items, statistics.median(forwards), statistics.median(extracts), middle)


def main() -> None:
    """Measure, print and, of all nets, write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    names = parser.parse_args().nets
    torch.set_num_threads(1)
    head = ("net", "items", "forward, s", "extraction, s", "ratio", *PARTS)
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join(['---'] * len(head))} |"]
    print("\n".join(lines), flush=True)
    for name in names:
        lines.append(take(name).row())
        print(lines[-1], flush=True)
    if names == list(NETS):
        REPORT.write_text(
            "# What an extraction takes\n\n"
            f"`python -m benchmarks.extract` on one thread, PyTorch {torch.__version__}. Processor seconds, "
            f"medians of {TURNS} turns (one where forward passes take more than {LONG_SECONDS:g} s); from "
            "*ratio* on in forward passes of the dense model over the calibration data. Half of the "
            "multiply-accumulates, without the repair.\n\n" + "\n".join(lines) + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
