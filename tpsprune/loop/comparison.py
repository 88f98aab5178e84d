"""``Comparison``: runs of one's own, pair by pair, to the same verdict as those of a recipe."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, final

from tpsprune import claims
from tpsprune.claims.faults import faults_by_pair
from tpsprune.errors import LoopError, RecipeError
from tpsprune.loop.comparison_faults import faults_of_design, faults_of_run
from tpsprune.loop.spent import Spent
from tpsprune.loop.turns import next_due, refuse_old_windows, refuse_out_of_turn, refuse_twice
from tpsprune.records import ArmRun, BrokenOff, Design, Savings
from tpsprune.records import Comparison as Record
from tpsprune.report.assessment import assessed
from tpsprune.report.savings.pages import write_report
from tpsprune.runs import Begun, ComparisonFolder, cannot_write
from tpsprune.runs.environment import machine_facts, versions
from tpsprune.runs.lock import exclusive
from tpsprune.runs.taking_up import ask_for_pairs, begin_or_match
from tpsprune.training import choose_device

__all__ = ["Comparison"]

ALPHA: Final = 0.05
ORDER_SEED: Final = 0
ELSEWHERE: Final = "another folder"


@final
class Comparison:
    """A journal of runs in several arms, on the same seeds, that ends in a claim or its refusal.

    What would count is fixed when it is begun, and on disk before the first run: arms, pairs, tolerance. Runs
    come in the order that ``due`` gives, arm after arm on each seed, drawn by lot for one pair and turned
    round for the next, so that a machine that drifts favours no arm. Each counts once, and is on disk when
    ``add`` returns. A program that was broken off goes on with the next run that is due.

    That a run begins is on disk too, before ``due`` yields it. One that was begun and never added is in the
    report as broken off, with an energy that nobody knows: runs given up because they went badly show.

    >>> import tempfile, tpsprune
    >>> folder = tempfile.mkdtemp()
    >>> record = tpsprune.Comparison(folder, arms=("dense", "ticket"), pairs=6)
    >>> for arm, seed in record.due():
    ...     joules = (100.0 if arm == "dense" else 60.0) + seed  # here a run is trained and metered
    ...     spent = tpsprune.Spent.of_numbers(joules=joules, seconds=10.0, source="wall")
    ...     record.add(arm, seed=seed, spent=spent, accuracy=0.9)
    >>> str(record.assess().verdict.standing)
    'SAVING_MEASURED'
    >>> record.report()[0].name
    'report.html'

    The verdict is that of ``tpsprune compare``: invalid windows, neighbours on the machine, too few pairs, an
    accuracy not shown to be kept, noise, and a sign that hangs on a power model each refuse it. More pairs
    may be asked for later (then each claim is tested more strictly), fewer may not. Answers of models are not
    metered here, and nothing is claimed of them. ``tpsprune report FOLDER`` makes the report again, with a
    grid or the readings of a wall meter.

    Args:
        folder: where ``journal.jsonl`` and the report lie; made if it is not there.
        arms: their names; the first is the baseline, and the claim fixed beforehand is that of ``ticket``, or
            else of the second.
        pairs: seeds to compare on, from ``first_seed``; six are the fewest that can claim.
        name: what the report calls it; without it that of the folder.
        first_seed: of the first pair.
        tolerance: how much test accuracy an arm may lose and still count as equally good (0.01: one point).
        required_accuracy: what the task asks for at all.
        foreign_load: share of the machine's processors that others may take in a run that counts.
        settings: what decides a run (model, data, epochs), as plain values of JSON; it is printed in the
            report, and a comparison goes on with the same only.
        device: what runs train on, for the report: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        RecipeError: a setting is out of bounds, or of another kind; every fault.
        DeviceError: the device is not here.
        RunFolderError: the folder holds another comparison, more pairs, or cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        arms: Sequence[str],
        pairs: int = 6,
        name: str = "",
        first_seed: int = 0,
        tolerance: float = 0.01,
        required_accuracy: float = 0.0,
        foreign_load: float = 0.2,
        settings: Mapping[str, Any] | None = None,
        device: str = "auto",
    ) -> None:
        faults = faults_of_design(
            arms=arms,
            pairs=pairs,
            name=name,
            first_seed=first_seed,
            required_accuracy=required_accuracy,
            settings=settings,
            device=device,
            tolerance=tolerance,
            foreign_load=foreign_load,
        )
        if found := list(faults):
            raise RecipeError("Comparison", found)
        self._folder = ComparisonFolder(Path(folder))
        text = json.dumps(dict(settings or {}), indent=1, sort_keys=True)
        design = Design(
            name=name or self._folder.path.resolve().name,
            arms=tuple(arms),
            first_seed=int(first_seed),
            order_seed=ORDER_SEED,
            tolerance_share=float(tolerance),
            required_accuracy=float(required_accuracy),
            alpha=ALPHA,
            inference_seconds=0.0,
            inference_batches=(),
            idle_seconds=0.0,
            foreign_load_share=float(foreign_load),
            patience=0,
            recipe_text=text,
            recipe_sha256=hashlib.sha256(text.encode()).hexdigest(),
            device=choose_device(str(device).partition(":")[0]).type,
            machine=machine_facts(),
            versions=versions(),
            begun=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            command=shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
            pairs=int(pairs),
        )
        with self._exclusively():
            # A run under way is left alone: it may be another program's, and this one may only look.
            record, _ = begin_or_match(self._folder, design, ELSEWHERE)
            ask_for_pairs(self._folder, record, design.pairs, f"pairs = {pairs}")

    @property
    def record(self) -> Record:
        """All that was measured so far."""
        return self._folder.read()[0]

    def due(self) -> Iterator[tuple[str, int]]:
        """Yield the arm and the seed of each run that is still to be made, in the order that was drawn.

        It is written down as begun before it is yielded, so that looking at what is due begins it. One that
        was begun before and never added is broken off thereby: it stays in the report, and its energy, which
        nobody handed in, is not known. The next one comes once this one was added; a loop that adds nothing
        gets the same run again, and is told so.

        Raises:
            LoopError: what was due has not been added.
            RunFolderError: it cannot be written.
        """
        before = None
        while (due := next_due(self.record)) is not None:
            if due == before:
                raise LoopError(f"Comparison: '{due[0]}', seed {due[1]}, was due and has not been added")
            before = due
            self._begin(*due)
            yield due

    def add(
        self,
        arm: str,
        *,
        seed: int,
        spent: Spent,
        accuracy: float | None = None,
        parameters: int | None = None,
        macs: int | None = None,
        epochs: float | None = None,
        stopped_by: str = "",
        failure: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        """Write a run down: what it took, and the test accuracy of the model it left.

        ``accuracy`` is a share, read once, on items that nothing was chosen by. A run that ended without a
        model is added too, with its ``failure`` in words: it took what it took.

        Raises:
            LoopError: another run is due, or ``due`` has not yielded it; what was spent was handed in
                before, or its windows are older than those of the run before it.
            RecipeError: a figure is out of bounds or of another kind, or windows of the run overlap; every
                fault.
            RunFolderError: it cannot be written.
        """
        faults = faults_of_run(
            seed=seed,
            spent=spent,
            accuracy=accuracy,
            epochs=epochs,
            failure=failure,
            stopped_by=stopped_by,
            notes=notes,
            parameters=parameters,
            macs=macs,
        )
        if found := list(faults):
            raise RecipeError("Comparison", found)
        with self._exclusively():
            record, under_way = self._folder.read()
            refuse_out_of_turn(record, under_way, arm, seed)
            refuse_twice(record, spent)
            refuse_old_windows(record, spent)
            # Numbers of NumPy are numbers, and nothing that JSON knows.
            run = ArmRun(
                arm=arm,
                seed=int(seed),
                pair=int(seed) - record.design.first_seed,
                position=len(record.runs) + len(record.broken_off),
                windows=spent.windows,
                method=spent.method,
                accuracy=None if failure or accuracy is None else float(accuracy),
                parameters=None if parameters is None else int(parameters),
                macs=None if macs is None else int(macs),
                epochs=None if epochs is None else float(epochs),
                stopped_by=stopped_by,
                failure=failure,
                notes=tuple(notes),
                logical_cpus=os.cpu_count() or 1,
                receipt=spent.receipt,
            )
            self._folder.append("run", run.to_json())

    def redo(self) -> dict[int, str]:
        """Set pairs with a fault of the measurement aside, so that they are due again; return each fault.

        The rule looks at the meter, never at a result. What is set aside stays in the journal and the report.
        """
        with self._exclusively():
            faults = faults_by_pair(self.record)
            for pair, fault in faults.items():
                self._folder.append("redo", {"pair": pair, "why": f"set aside: {fault}"})
        return faults

    def assess(self) -> Savings:
        """Return what the runs let one say: ``.verdict.standing``, ``.verdict.statement``, all claims."""
        return claims.assess(self.record)

    def report(self) -> tuple[Path, ...]:
        """Write the report beside the journal and return its files, the page first.

        Raises:
            CannotWriteError: no space, or not permitted.
        """
        digest = hashlib.sha256(self._folder.journal.path.read_bytes()).hexdigest()
        return write_report(assessed(self._folder), self._folder.path, journal_sha256=digest)

    def _begin(self, arm: str, seed: int) -> None:
        with self._exclusively():
            record, given_up = self._folder.read()
            position = len(record.runs) + len(record.broken_off)
            if given_up is not None:
                broken = BrokenOff(
                    arm=given_up.arm, seed=given_up.seed, pair=given_up.pair, position=position, windows=()
                )
                self._folder.append("broken-off", broken.to_json())
                position += 1
            pair = seed - record.design.first_seed
            begun = Begun(arm=arm, seed=seed, pair=pair, position=position, folder="")
            self._folder.append("begun", asdict(begun))

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        try:
            self._folder.runs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self._folder.runs, error) from error
        with exclusive(self._folder.runs / "lock", beside=f"write to {ELSEWHERE}"):
            yield
