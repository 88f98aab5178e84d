"""Calibration without data: a cut on items made up beside one on real items, on noise, and magnitude.

    python -m benchmarks.synthetic                     # reports/synthetic.md: some twenty minutes of one core
    python -m benchmarks.synthetic --nets text lite0   # rows of these anew, the others as they were measured

As cut, without repair: test accuracy (of the published nets their own measure, of `text`, recipe
`llama-text` trained dense, bits a byte and accuracy of the next byte) at a half and a quarter of the
operations. `real` is 1,024 training items (512 of the published nets and of `text`), `synthetic` 512 items
of `tpsprune.extract(model, "synthetic", example=…)` (what `text` writes itself, in the second row of it
words of random networks, as a model that is no language model gets), `noise` as many standard normal items
as `real`, or token ids drawn uniformly from those that `real` has; `magnitude` is torch-pruning's, uniform
widths, its batch-norm statistics computed again on real items.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tpsprune
from benchmarks.family import MAGNITUDE, net_named
from benchmarks.zoo.places import CACHE
from tpsprune import recipe
from tpsprune.errors import PruneError
from tpsprune.numerics.trees import map_tensors, take_items
from tpsprune.pruning import MOST_ITEMS, synthesize
from tpsprune.runs.tensors import load_tensors, save_tensors
from tpsprune_studies.setup import at_seed, prepare

REPORT = Path(__file__).parents[1] / "reports" / "synthetic.md"
SHARES = (0.5, 0.25)
TEXT, RANDOM_WORDS = "text", "text, random words"
TEXT_ITEMS = 512
NETS = ("digits", "fashion", "vit", "resnet8", TEXT, RANDOM_WORDS)
MORE = ("lite0", "crepe", "minilm", "bytes", "silero")
"""Published and small nets of ``real_nets``: a quarter of an hour and more each, where their packages are."""
ITEMS = {"lite0": 128}
"""Items made up, where 512 take too long; of lite0 real items and noise are 256 crops."""
HEAD = "| net | dense | share | real | synthetic | noise | magnitude | mismatch | seconds |"
RULE = "| " + " | ".join(["---"] * 9) + " |"


@dataclass(frozen=True)
class Judged:
    """A trained net, real calibration data, and its measure in words."""

    model: nn.Module
    batches: list[Any]
    judge: Callable[[nn.Module], str]


def judged(name: str) -> Judged:
    """Return a trained net by its name."""
    if name in (TEXT, RANDOM_WORDS):
        return language_model()
    net = net_named(name)
    return Judged(net.model, net.batches, lambda model: f"{net.score(model):.4f}")


def language_model() -> Judged:
    """Return the net of recipe ``llama-text``, trained dense to the end, once for some minutes."""
    prepared = prepare(at_seed(recipe.read("llama-text"), 0))
    kept = CACHE / "llama-text.safetensors"
    if not kept.is_file():
        for _ in prepared.fit(prepared.total_steps):
            pass
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(kept, dict(prepared.model.state_dict()), {})
    prepared.model.load_state_dict(load_tensors(kept)[0])

    def judge(model: nn.Module) -> str:
        score = prepared.evaluate(prepared.dataset.test, model)
        return f"{score.loss / math.log(2):.3f} bits, {score.accuracy:.4f}"

    inputs, _ = prepared.sample_calibration(TEXT_ITEMS)
    return Judged(prepared.model.eval(), list(torch.split(inputs, 64)), judge)


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
    net = judged(name)
    like = take_items(net.batches[0], torch.arange(8))
    began = time.process_time()
    own_words = name != RANDOM_WORDS
    made = synthesize(net.model, like, ITEMS.get(name, MOST_ITEMS), own_words=own_words)
    seconds = time.process_time() - began
    mismatch = "none to match"
    if made.mismatch_before is not None:
        mismatch = f"{made.mismatch_before:.2g} → {made.mismatch_after:.2g}"
    dense = net.judge(net.model)
    found = []
    for share in SHARES:
        scores = [
            score_of(net, net.batches, share),
            score_of(net, list(made.batches), share),
            score_of(net, noise_like(net.batches), share),
            score_of(net, net.batches, share, **MAGNITUDE),
        ]
        cells = " | ".join(scores)
        found.append(f"| {name} | {dense} | {share:g} | {cells} | {mismatch} | {seconds:.0f} |")
        print(found[-1], flush=True)
    return found


def score_of(net: Judged, batches: list[Any], share: float, **settings: Any) -> str:
    """Return the score of a ticket as cut, or why there is none."""
    try:
        found = tpsprune.extract(net.model, batches, tpsprune.Macs(share), quality="fast", **settings)
    except PruneError as error:
        return f"refused: {str(error)[:40]}"
    return net.judge(found.ticket)


def rows_kept() -> dict[str, list[str]]:
    """Return the lines of each net that the report has, if it is of this version of PyTorch."""
    text = REPORT.read_text(encoding="utf-8") if REPORT.is_file() else ""
    found: dict[str, list[str]] = {}
    if f"PyTorch {torch.__version__}," not in text:
        return found
    for line in text.splitlines():
        name = line.removeprefix("| ").partition(" |")[0]
        if name in (*NETS, *MORE):
            found.setdefault(name, []).append(line)
    return found


def main() -> None:
    """Measure, print and write the report: rows of the named nets anew, the others as they were."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=[*NETS, *MORE])
    names = parser.parse_args().nets
    torch.set_num_threads(1)
    print("\n".join([HEAD, RULE]), flush=True)
    for name in names:
        found = {**rows_kept(), name: rows(name)}
        write_report([line for each in (*NETS, *MORE) for line in found.get(each, ())])


def write_report(lines: list[str]) -> None:
    """Write the report of these lines."""
    about = (__doc__ or "").partition("As cut, ")[2].replace("\n", " ").strip()
    REPORT.write_text(
        f"# Calibration without data\n\n`python -m benchmarks.synthetic` on one thread, PyTorch "
        f"{torch.__version__}, one seed. As cut, {about} *Mismatch* is that of the items with the batch "
        "norms before and after they were matched, *seconds* the processor time of making them up.\n\n"
        + "\n".join([HEAD, RULE, *lines])
        + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
