"""Half of the operations of every architecture in ``coverage_nets``: what comes out, and why not more.

    python -m benchmarks.zoo.coverage --out reports/coverage.md     # all of them: some minutes
    python -m benchmarks.zoo.coverage --only mobilevit_xxs          # printed, with a reason for what stays

Each is built small and at random and pruned to half of its multiply-accumulates on 24 random items, with
compensation; where half is out of reach, to the least that the message names. The ticket has to run in
training mode, backward too, on two items where the dense model does, and its plan has to replay. Each runs
in a process of its own, for four minutes at most. The exit code is 1 where anything but a ticket or a refusal
in words comes out.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

import tpsprune
from benchmarks.zoo.coverage_nets import ITEMS, Batches, Case, cases
from tpsprune.errors import PruneError, TpspruneError
from tpsprune.models.libraries import import_torchvision
from tpsprune.numerics.forward import call_model, flat_tensors
from tpsprune.numerics.trees import take_items

SECONDS: Final = 240
TARGET: Final = 0.5
ALL: Final[dict[str, Any]] = {"embedding_width": True, "new_biases": True, "quality": "fast"}
"""What is left alone in models of transformers unless asked is asked for here; no accuracy is looked at."""
LEAST: Final = re.compile(r"the least is (\d\.\d+)[,;]? ?(.*)")
DEFECT: Final = "TRACEBACK"


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one architecture; ``left`` are the names that were not pruned with their reasons."""

    name: str
    library: str
    macs: float | None
    outcome: str
    seconds: float = 0.0
    left: tuple[tuple[str, str], ...] = ()

    @property
    def is_defect(self) -> bool:
        """Whether something else than a ticket or a refusal in words came out."""
        return self.outcome.startswith(DEFECT)

    def cells(self) -> str:
        """Return the row as Markdown."""
        kept = "" if self.macs is None else f"{self.macs:.3f}"
        usual = Counter(why for _, why in self.left).most_common(1)
        left = f"{len(self.left)}, most: {usual[0][0]}" if usual else ""
        return f"| {self.name} | {kept} | {_cell(self.outcome)} | {_cell(left)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def measure(case: Case) -> Row:
    """Prune one architecture and try the ticket; whatever is raised becomes a row."""
    began = time.monotonic()

    def row(macs: float | None, outcome: str, left: Sequence[Any] = ()) -> Row:
        reasons = tuple((each.name, each.reason) for each in left)
        return Row(case.name, case.library, macs, outcome, time.monotonic() - began, reasons)

    torch.manual_seed(0)
    model, batches = case.build()
    try:
        found, outcome = _prune(model, batches)
        _try_ticket(model, found, batches)
    except TpspruneError as error:
        return row(None, f"refused: {error}")
    except Exception as error:  # noqa: BLE001
        where = traceback.extract_tb(error.__traceback__)
        ours = next((each for each in reversed(where) if "/tpsprune/" in each.filename), where[-1])
        place = f"{Path(ours.filename).name}:{ours.lineno}"
        return row(None, f"{DEFECT}: {type(error).__name__} at {place}: {error}")
    return row(found.macs_share, outcome, found.unpruned)


def _prune(model: nn.Module, batches: Batches) -> tuple[tpsprune.Extraction, str]:
    """Prune to the target, or as far as the message says that it goes."""
    try:
        return tpsprune.extract(model, batches, tpsprune.Macs(TARGET), **ALL), "to the target"
    except PruneError as error:
        if (least := LEAST.search(str(error))) is None or float(least[1]) >= 1:
            raise
        found = tpsprune.extract(model, batches, tpsprune.Macs(float(least[1])), **ALL)
        return found, f"as far as allowed: {least[2] or 'the least widths'}"


def _try_ticket(model: nn.Module, found: tpsprune.Extraction, batches: Batches) -> None:
    """Run the ticket and the replayed plan in training mode, backward too, where the dense model does so."""
    few = take_items(batches if isinstance(batches, torch.Tensor) else batches[0], torch.arange(2))
    try:
        _train_once(model, few)
    except Exception:  # noqa: BLE001
        return
    for pruned in (found.ticket, tpsprune.replay(model, found.plan)):
        _train_once(pruned, few)


def _train_once(model: nn.Module, few: Any) -> None:
    model.train()
    parts = [each.square().mean() for each in flat_tensors(call_model(model, few)) if each.requires_grad]
    torch.stack(parts).sum().backward()


def measure_apart(case: Case) -> Row:
    """Measure in a process of its own: one that dies or hangs is a row too."""
    context = get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(case, theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(SECONDS):
            return Row(case.name, case.library, None, f"{DEFECT}: not done in {SECONDS} s")
        row: Row = ours.recv()
    except EOFError:
        process.join()
        return Row(case.name, case.library, None, f"{DEFECT}: it ended with code {process.exitcode}")
    else:
        return row
    finally:
        process.kill()
        process.join()


def _send(case: Case, pipe: Connection) -> None:
    torch.set_num_threads(1)
    pipe.send(measure(case))


def page(rows: Sequence[Row]) -> str:
    """Return the report."""
    outcomes = Counter(row.outcome.partition(":")[0] for row in rows)
    count = ", ".join(f"{many} {outcome}" for outcome, many in outcomes.most_common())
    parts = [
        "# Architectures",
        f"Half of the multiply-accumulates of {len(rows)} architectures, each built small and at random by"
        f" its library and pruned on {ITEMS} random items: {count}. Every ticket runs in training mode,"
        " backward too, where the dense model does, and its plan replays. `python -m benchmarks.zoo.coverage"
        " --out reports/coverage.md` makes this page. The width of embeddings is pruned too, which models of"
        " transformers keep unless asked. It shows what can be pruned, nothing about accuracy.",
        "Versions: "
        + ", ".join(
            f"{name} {version(name)}"
            for name in ("torch", "timm", "torchvision", "transformers", "torch-pruning")
        )
        + ".",
    ]
    for library in dict.fromkeys(row.library for row in rows):
        table = ["| architecture | MACs kept | outcome | left alone |", "| --- | --- | --- | --- |"]
        table += [row.cells() for row in rows if row.library == library]
        parts += [f"## {library}", "\n".join(table)]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="What can be pruned of the architectures that people have.")
    parser.add_argument("--out", type=Path, help="where to write the table")
    parser.add_argument("--only", action="append", default=[], help="a name or an fnmatch pattern")
    options = parser.parse_args()
    patterns = options.only or ["*"]
    chosen = [case for case in cases() if any(fnmatchcase(case.name, pattern) for pattern in patterns)]
    import_torchvision()
    rows = []
    for case in chosen:
        rows.append(measure_apart(case))
        print(f"{rows[-1].cells()} {rows[-1].seconds:.0f} s", flush=True)
        for name, reason in rows[-1].left if options.only else ():
            print(f"    {name}: {reason}")
    if options.out:
        options.out.write_text(page(rows), encoding="utf-8")
    return int(any(row.is_defect for row in rows))


if __name__ == "__main__":
    sys.exit(main())
