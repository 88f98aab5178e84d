"""Calibration without data: a cut on items made up beside one on real items, on noise, and magnitude.

    python -m benchmarks.synthetic                     # reports/synthetic.md: some ten minutes of one core
    python -m benchmarks.synthetic --nets lite0        # printed

As cut, without repair: test accuracy (of the published nets their own measure) at a half and a quarter of the
operations. `real` is 1,024 training items (512 of the published nets), `synthetic` 512 items of
`tpsprune.extract(model, "synthetic", example=…)`, `noise` as many standard normal items, or token ids drawn
uniformly; `magnitude` is torch-pruning's, uniform widths, its batch-norm statistics computed again on real
items.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tpsprune
from benchmarks.family import MAGNITUDE, Net, net_named
from tpsprune.errors import PruneError
from tpsprune.numerics.trees import map_tensors, take_items
from tpsprune.pruning import synthesize

REPORT = Path(__file__).parents[1] / "reports" / "synthetic.md"
SHARES = (0.5, 0.25)
NETS = ("digits", "fashion", "vit", "resnet8")
MORE = ("lite0", "crepe", "minilm", "bytes", "silero")
"""Published and small nets of ``real_nets``: a quarter of an hour and more each, printed alone."""
HEAD = "| net | dense | share | real | synthetic | noise | magnitude | mismatch | seconds |"


def noise_like(batches: list[Any]) -> list[Any]:
    """Return batches of the same shapes: floats standard normal, token ids uniform, masks as they are."""
    generator = torch.Generator().manual_seed(0)

    def noise(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return torch.randn(tensor.shape, generator=generator)
        highest = int(tensor.max())
        return torch.randint(highest + 1, tensor.shape, generator=generator) if highest > 1 else tensor

    return [map_tensors(batch, noise) for batch in batches]


def rows(name: str) -> list[str]:
    """Return the lines of a net."""
    net = net_named(name)
    like = take_items(net.batches[0], torch.arange(8))
    began = time.process_time()
    made = synthesize(net.model, like)
    seconds = time.process_time() - began
    mismatch = "none to match"
    if made.mismatch_before is not None:
        mismatch = f"{made.mismatch_before:.2g} → {made.mismatch_after:.2g}"
    dense = net.score(net.model)
    found = []
    for share in SHARES:
        scores = [
            score_of(net, net.batches, share),
            score_of(net, list(made.batches), share),
            score_of(net, noise_like(net.batches), share),
            score_of(net, net.batches, share, **MAGNITUDE),
        ]
        cells = " | ".join(scores)
        found.append(f"| {name} | {dense:.4f} | {share:g} | {cells} | {mismatch} | {seconds:.0f} |")
    return found


def score_of(net: Net, batches: list[Any], share: float, **settings: Any) -> str:
    """Return the score of a ticket as cut, or why there is none."""
    try:
        found = tpsprune.extract(net.model, batches, tpsprune.Macs(share), quality="fast", **settings)
    except PruneError as error:
        return f"refused: {str(error)[:40]}"
    return f"{net.score(found.ticket):.4f}"


def main() -> None:
    """Measure, print and, of all nets, write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=[*NETS, *MORE])
    names = parser.parse_args().nets
    torch.set_num_threads(1)
    lines = [HEAD, "| " + " | ".join(["---"] * 9) + " |"]
    print("\n".join(lines), flush=True)
    for name in names:
        lines += (found := rows(name))
        print("\n".join(found), flush=True)
    if names == list(NETS):
        about = (__doc__ or "").partition("As cut, ")[2].replace("\n", " ").strip()
        REPORT.write_text(
            f"# Calibration without data\n\n`python -m benchmarks.synthetic` on one thread, PyTorch "
            f"{torch.__version__}, one seed. As cut, {about} *Mismatch* is that of the items with the batch "
            "norms before and after they were matched, *seconds* the processor time of making them up.\n\n"
            + "\n".join(lines)
            + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
