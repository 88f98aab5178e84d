"""What the Python API costs: its import, and TPS as part of a step of ResNet-20.

    python benchmarks/api.py             # some minutes; writes reports/api.md
    python benchmarks/api.py --pairs 8

Steps with and without TPS alternate, so that what else the machine does meets both; nothing here decides a
test.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import tpsprune
from tpsprune.models import ResNet

REPORT = Path(__file__).parents[1] / "reports" / "api.md"
BATCH = 128
SIDE = 32
CLASSES = 10
WARM_UP_STEPS = 2
IMPORTS = 5
REFRESH_STEPS = 50
TARGET = 0.05
VARIANTS: dict[str, dict[str, Any]] = {
    "weights": {"variant": "weights"},
    "neurons": {"variant": "neurons"},
    "moments": {"variant": "moments"},
}


@dataclass(frozen=True, slots=True)
class Share:
    """TPS over the rest of a step: the median over pairs, and an interval for it."""

    median: float
    low: float
    high: float


def import_seconds(code: str) -> float:
    """Return the median time of some lines over fresh processes."""
    script = f"import time; started = time.perf_counter(); {code}; print(time.perf_counter() - started)"
    found = [
        float(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout)
        for _ in range(IMPORTS)
    ]
    return statistics.median(found)


class Loop:
    """A plain loop over one batch, with TPS or without."""

    def __init__(self, settings: dict[str, Any] | None) -> None:
        torch.manual_seed(0)
        self.x: Tensor = torch.randn(BATCH, 3, SIDE, SIDE)
        self.y: Tensor = torch.randint(CLASSES, (BATCH,))
        self.model = ResNet(3, 20, 16, CLASSES)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.tps = (
            None
            if settings is None
            else tpsprune.TPS(self.model, self.optimizer, data=(self.x, self.y), **settings)
        )

    def step(self) -> float:
        """Make one step and return its processor seconds."""
        started = time.process_time()
        if self.tps is None:
            cross_entropy(self.model(self.x), self.y).backward()
        else:
            with self.tps.listening():
                loss = cross_entropy(self.model(self.x), self.y)
            (loss + self.tps(self.y, loss)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.process_time() - started

    def tps_alone(self) -> float:
        """Return the processor seconds of what TPS does in a step, made without the rest of it.

        Without gradients an optimiser does nothing but call its hook. A term of the loss is made and
        taken back to the layer that was heard, where its gradient is added to the one that comes down.
        """
        assert self.tps is not None
        if not self.tps.needs_labels:
            started = time.process_time()
            self.tps(self.y)
            self.optimizer.step()
            return time.process_time() - started
        heard: list[Tensor] = []
        hook = self.model.conv.register_forward_hook(lambda _, __, output: heard.append(output))
        with self.tps.listening():
            loss = cross_entropy(self.model(self.x), self.y)
        hook.remove()
        started = time.process_time()
        (slope,) = torch.autograd.grad(self.tps(self.y, loss), heard[0])
        slope.add_(heard[0].detach())
        return time.process_time() - started


def paired(settings: dict[str, Any], pairs: int) -> tuple[Share, Share, float]:
    """Return TPS alone over a step, a step with over one without less 1, and the seconds of one without."""
    with_tps, without = Loop(settings), Loop(None)
    for _ in range(WARM_UP_STEPS):
        with_tps.step()
        without.step()
    with_tps.tps_alone()
    alone, more, seconds = [], [], []
    for pair in range(pairs):
        mine = with_tps.step() if pair % 2 else 0.0
        other = without.step()
        mine = mine or with_tps.step()
        alone.append(with_tps.tps_alone() / other)
        more.append(mine / other - 1.0)
        seconds.append(other)
    return median_interval(alone), median_interval(more), statistics.median(seconds)


def median_interval(values: list[float]) -> Share:
    """Return the median with its 95 % interval by order statistics: it asks nothing of how values scatter."""
    ordered, count = sorted(values), len(values)
    cut, tail = 0, 0.5**count
    while tail + comb(count, cut + 1) / 2**count <= 0.025:
        cut += 1
        tail += comb(count, cut) / 2**count
    return Share(statistics.median(ordered), ordered[cut], ordered[count - 1 - cut])


def lines(pairs: int) -> Iterator[str]:
    """Measure, and yield the rows of the table."""
    yield "| variant | a step without | TPS alone | 95 % interval | with over without | 95 % interval |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for name, settings in VARIANTS.items():
        alone, more, seconds = paired(settings, pairs)
        print(name, alone, more, flush=True)
        yield row(name, alone, more, seconds)
        if name == "neurons":
            each = {**settings, "refresh_steps": 1}
            refitted, more, seconds = paired(each, max(pairs // 2, 6))
            print("refreshed", refitted, more, flush=True)
            yield row("neurons, planes fitted at each step", refitted, more, seconds)
            mean = alone.median + (refitted.median - alone.median) / REFRESH_STEPS
            yield f"| neurons, fitted every {REFRESH_STEPS}th step (default) | | {mean:.2%} | | | |"


def row(name: str, alone: Share, more: Share, seconds: float) -> str:
    """Return one row."""
    cells = (
        f"{alone.median:.2%} | {alone.low:.2%} to {alone.high:.2%}",
        f"{more.median:+.1%} | {more.low:+.1%} to {more.high:+.1%}",
    )
    return f"| {name} | {1000 * seconds:.0f} ms | {' | '.join(cells)} |"


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    pairs = options.pairs
    # More would wait for one another where a machine is shared, which is no cost of anything here.
    torch.set_num_threads(options.threads)
    light = import_seconds("import tpsprune")
    touched = import_seconds("import tpsprune; tpsprune.TPS")
    torch_alone = import_seconds("import torch")
    table = "\n".join(lines(pairs))
    REPORT.write_text(
        f"""# The Python API: what it costs

`python benchmarks/api.py --pairs {pairs}` on {os.cpu_count()} logical CPUs, torch {torch.__version__} on \
{torch.get_num_threads()} thread(s); load of the machine meanwhile {os.getloadavg()[1]:.0f}.

- `import tpsprune` in a fresh process: {1000 * light:.0f} ms (median of {IMPORTS}; at most 200 ms is the aim)
- with `tpsprune.TPS` touched: {touched:.2f} s, of which torch alone takes {torch_alone:.2f} s

## TPS in a plain loop

ResNet-20 (16, 32 and 64 channels, {SIDE} × {SIDE} colour images, batch {BATCH}, SGD), processor time, \
medians over {pairs} pairs. "TPS alone" is its own work, made right after a step without it and divided by \
that step; "with over without" the difference of two whole steps, now the one and now the other first, which \
scatters with whatever else the machine does. At most {TARGET:.0%} is the aim.

{table}
""",
        encoding="utf-8",
    )
    print(REPORT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
