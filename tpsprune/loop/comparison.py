"""``Comparison``: a user's runs, pair by pair, to the same verdict as those of a recipe."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self, final

from tpsprune import claims
from tpsprune.claims.faults import faults_by_pair
from tpsprune.errors import LoopError, RecipeError
from tpsprune.loop.comparison_faults import faults_of_design, faults_of_run
from tpsprune.loop.meter import EnergyUse
from tpsprune.recipe.compare import Compare, order_of
from tpsprune.records import ArmRun, BrokenOff, Design, EnergyClass, Savings, Window
from tpsprune.records import ComparisonRecord as Record
from tpsprune.records.energy import without_impossible
from tpsprune.report.assessment import assess_journal
from tpsprune.runs import (
    Begun,
    ComparisonFolder,
    RunFolder,
    begin_or_match,
    cannot_write,
    exclusive,
    machine_facts,
    request_pairs,
    sweep,
    versions,
)
from tpsprune.runs.comparison import Line
from tpsprune.training import choose_device

ALPHA: Final = 0.05
ORDER_SEED: Final = 0
ANOTHER_FOLDER: Final = "another folder"


@final
class Comparison:
    """A journal of runs in several arms, on the same seeds, that ends in a claim or its refusal.

    What would count is fixed when it is begun, and on disk before the first run: arms, pairs, tolerance. Runs
    come in the order that ``due`` gives, arm after arm on each seed, random for one pair and reversed
    for the next, so that a machine that drifts favours no arm. Each counts once, and is on disk when
    ``add`` returns. A program that was broken off resumes with the next run that is due.

    That a run begins is on disk too, before ``due`` yields it. One that was begun and never added is in the
    report as broken off, with an unknown energy: runs given up because they went badly are visible.

    >>> import tempfile, tpsprune
    >>> folder = tempfile.mkdtemp()
    >>> record = tpsprune.Comparison(folder, arms=("wide", "narrow"), pairs=6)
    >>> for arm, seed in record.due():
    ...     joules = (100.0 if arm == "wide" else 60.0) + seed  # here a run is trained and metered
    ...     energy_use = tpsprune.EnergyUse.of_numbers(joules=joules, seconds=10.0, source="wall")
    ...     record.add(arm, seed=seed, energy_use=energy_use, accuracy=0.9)
    >>> str(record.assess().verdict.standing)
    'SAVING_MEASURED'
    >>> record.report()[0].name
    'report.html'

    The verdict is that of ``tpsprune compare``: invalid windows, neighbours on the machine, too few pairs, an
    accuracy not shown to be kept, noise, and a sign that hangs on a power model each refuse it. An arm with
    the name of one of the command's pruned arms, as ``ticket``, needs opponents beside it: ``dense-joules``,
    and ``scratch-joules`` or ``uniform-joules``; ``family`` needs ``each-joules``, and ``frozen`` and
    ``frozen-ticket`` need ``fine-tune-joules``. More pairs may be added
    later (then each claim is tested more strictly), fewer may not. Inference is not metered here, and nothing
    is claimed of it. ``tpsprune report FOLDER`` makes the report again, with a grid or the readings of a wall
    meter.

    Args:
        folder: where ``journal.jsonl`` and the report lie; made if it is not there.
        arms: their names; the first is the baseline, and the claim fixed beforehand is that of ``ticket``,
            ``family``, ``frozen-ticket`` or ``frozen``, or else of the second.
        pairs: seeds to compare on, from ``first_seed``; six are the fewest that can claim.
        name: what the report calls it; without it that of the folder.
        first_seed: of the first pair.
        tolerance: how much test accuracy an arm may lose and still count as equally good (0.01: one point).
        required_accuracy: the least that the task requires.
        foreign_load: share of the machine's processors that others may take in a run that counts.
        settings: what decides a run (model, data, epochs), as values of JSON; it is printed in the
            report, and a comparison resumes with the same only.
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
        design = design_of(
            name=name or Path(folder).resolve().name,
            arms=tuple(arms),
            pairs=int(pairs),
            first_seed=int(first_seed),
            required_accuracy=float(required_accuracy),
            rules=Compare(
                tolerance=float(tolerance),
                foreign_load=float(foreign_load),
                patience=0,
                inference_seconds=0.0,
                idle_seconds=0.0,
            ),
            text=json.dumps(dict(settings or {}), indent=1, sort_keys=True),
            device=str(device).partition(":")[0],
            command=shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        )
        self._open(ComparisonFolder(Path(folder)), design, pairs, f"pairs = {pairs}", ANOTHER_FOLDER, "")

    @classmethod
    def of_design(cls, folder: ComparisonFolder, design: Design, pairs: int | None = None) -> Self:
        """Begin or take up the comparison of a recipe, whose runs have folders below ``folder.runs``.

        ``pairs``: another number of them than the design's, if one is requested.

        Raises:
            RunFolderError: as the constructor.
        """
        comparison = cls.__new__(cls)
        run_folders = "runs/{position:03}-{arm}-seed-{seed}"
        comparison._open(folder, design, pairs, f"--pairs {pairs}", "--out", run_folders)
        return comparison

    def _open(
        self,
        folder: ComparisonFolder,
        design: Design,
        pairs: int | None,
        pairs_option: str,
        folder_option: str,
        run_folders: str,
    ) -> None:
        """Write the design down, or compare it with the one that is there.

        ``pairs_option`` is how ``pairs`` was typed, ``folder_option`` how another folder is; ``run_folders``
        is the pattern of the folders that runs are made in, empty where the user makes them.
        """
        self._folder, self._folder_option, self._run_folders = folder, folder_option, run_folders
        self._is_held = False
        with self.held():
            # A run under way is left alone: it may be another program's, and this one may only read.
            record = begin_or_match(folder, design, folder_option)
            request_pairs(folder, record, pairs, pairs_option)

    @property
    def record(self) -> Record:
        """All that was measured so far."""
        return self._folder.read()[0]

    @property
    def under_way(self) -> Begun | None:
        """The run that has begun and not ended; of several, the first that has begun."""
        return next(iter(self._folder.read()[1]), None)

    def due(self, *, pair: int | None = None) -> Iterator[tuple[str, int]]:
        """Yield the arm and the seed of each run that is still to be made, in their random order.

        It is written down as begun before it is yielded, so that iterating begins it. One that was begun
        before and never added is thereby broken off: the report keeps it, with an unknown energy. The next
        one comes once this one was added; a loop that adds nothing gets a LoopError. ``pair``: of that pair
        alone.

        Raises:
            LoopError: what was due has not been added.
            RunFolderError: it cannot be written.
        """
        before = None
        while (due := next(iter(list_due(self.record, pair)), None)) is not None:
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
        energy_use: EnergyUse,
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
        model is added too, with its ``failure`` as text: its energy counts.

        Raises:
            LoopError: another run is due, or ``due`` has not yielded it; what it used was added
                before, or its windows are older than those of the run before it.
            RecipeError: a figure is out of bounds or of another kind, or windows of the run overlap; every
                fault.
            RunFolderError: it cannot be written.
        """
        faults = faults_of_run(
            seed=seed,
            energy_use=energy_use,
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
        with self.held():
            record = self.record
            begun = self._find_begun(arm, int(seed))
            _refuse_twice(record, energy_use)
            _refuse_old_windows(record, energy_use)
            # Numbers of NumPy are numbers, and nothing that JSON knows.
            run = ArmRun(
                arm=arm,
                seed=int(seed),
                pair=begun.pair,
                position=begun.position,
                windows=tuple(map(without_impossible, energy_use.windows)),
                method=energy_use.method,
                accuracy=None if failure or accuracy is None else float(accuracy),
                parameters=None if parameters is None else int(parameters),
                macs=None if macs is None else int(macs),
                epochs=None if epochs is None else float(epochs),
                stopped_by=stopped_by,
                failure=failure,
                notes=tuple(notes),
                logical_cpus=os.cpu_count() or 1,
                receipt=energy_use.receipt,
            )
            self._folder.append("run", run)

    def add_run(self, run: ArmRun) -> None:
        """Write down a run that was made in a folder below this one, measured and checked there.

        Raises:
            LoopError: another run is due, or ``due`` has not yielded it.
            RunFolderError: it cannot be written.
        """
        with self.held():
            self._find_begun(run.arm, run.seed, run.pair)
            self._folder.append("run", run)

    def begin_pair(self, pair: int) -> None:
        """Write down that a machine begins with a pair; what had begun of it before is broken off.

        It stands there as a run of the baseline, which every claim is against: how far the machine has got
        is not known before it has ended.

        Raises:
            RunFolderError: it cannot be written.
        """
        with self.held():
            self.give_up_begun(pair)
            record = self.record
            begun = Begun(
                arm=record.design.baseline,
                seed=record.design.first_seed + pair,
                pair=pair,
                position=_next_position(record),
                folder="",
            )
            self._folder.append("begun", asdict(begun))

    def add_pair(self, lines: Sequence[tuple[str, Line]], machine: str) -> tuple[ArmRun, ...]:
        """Write down all that a machine has measured of a pair, at once; return its runs as they stand there.

        Raises:
            RunFolderError: it cannot be written.
        """
        with self.held():
            record = self.record
            position = _next_position(record)
            placed: list[tuple[str, Line]] = []
            for kind, line in lines:
                if isinstance(line, ArmRun):
                    # Its folder is on that machine.
                    line = replace(line, position=position, machine=machine, folder="")  # noqa: PLW2901
                elif isinstance(line, BrokenOff):
                    line = replace(line, position=position)  # noqa: PLW2901
                position += isinstance(line, ArmRun | BrokenOff)
                placed.append((kind, line))
            self._folder.append_all(placed)
        return tuple(line for _, line in placed if isinstance(line, ArmRun))

    def redo(self) -> dict[int, str]:
        """Set pairs with a fault of the measurement aside, so that they are due again; return each fault.

        The rule reads the meter, never a result. What is set aside is kept in the journal and the report.
        """
        with self.held():
            faults = faults_by_pair(self.record)
            for pair, fault in faults.items():
                self._folder.append("redo", {"pair": pair, "why": f"set aside: {fault}"})
        return faults

    def assess(self) -> Savings:
        """Return what the runs show: ``.verdict.standing``, ``.verdict.statement``, all claims."""
        return claims.assess(self.record)

    def report(self) -> tuple[Path, ...]:
        """Write the report beside the journal and return its files, the page first.

        Raises:
            CannotWriteError: no space, or not permitted.
        """
        # Here, because matplotlib would slow every command that never plots.
        from tpsprune.report.savings.pages import write_report

        digest = hashlib.sha256(self._folder.journal.path.read_bytes()).hexdigest()
        return write_report(assess_journal(self._folder), self._folder.path, journal_sha256=digest)

    def give_up_begun(self, pair: int | None = None) -> None:
        """Write what is under way, of one pair or of all, down as broken off.

        With the windows that a run's folder holds; what a machine of a cluster took for a pair is not known.
        """
        with self.held():
            record, under_way = self._folder.read()
            given_up = [begun for begun in under_way if pair in {None, begun.pair}]
            for position, begun in enumerate(given_up, _next_position(record)):
                runs = run_folders_in(self._folder.path / begun.folder) if begun.folder else ()
                broken = BrokenOff(
                    arm=begun.arm,
                    seed=begun.seed,
                    pair=begun.pair,
                    position=position,
                    windows=windows_in(runs),
                )
                self._folder.append("broken-off", broken)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other programs out until the block ends; a line by itself is written within one of its own.

        Raises:
            RunFolderError: another program is in.
        """
        if self._is_held:
            yield
            return
        try:
            self._folder.runs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self._folder.runs, error) from error
        with exclusive(self._folder.runs / "lock", remedy=f"write elsewhere with {self._folder_option}"):
            sweep(self._folder.path, below=False)
            sweep(self._folder.runs)
            self._is_held = True
            try:
                yield
            finally:
                self._is_held = False

    def _begin(self, arm: str, seed: int) -> None:
        with self.held():
            self.give_up_begun()
            record = self.record
            position = _next_position(record)
            begun = Begun(
                arm=arm,
                seed=seed,
                pair=seed - record.design.first_seed,
                position=position,
                folder=self._run_folders.format(position=position, arm=arm, seed=seed),
            )
            self._folder.append("begun", asdict(begun))

    def _find_begun(self, arm: str, seed: int, pair: int | None = None) -> Begun:
        """Return the run under way, if it is this one, the next of all or of its pair.

        Raises:
            LoopError: another one is due, it is written down already, or ``due`` did not yield it.
        """
        record, _ = self._folder.read()
        under_way = self.under_way
        due = next(iter(list_due(record, pair)), None)
        if due != (arm, seed):
            if record.run_of(arm, seed - record.design.first_seed) is not None:
                raise LoopError(
                    f"Comparison: '{arm}', seed {seed}, is in the journal already; each run counts once"
                )
            rest = "every run is there" if due is None else f"'{due[0]}', seed {due[1]}, is due"
            raise LoopError(
                f"Comparison: '{arm}', seed {seed}, is not due: {rest}. Runs come in the order of due(), arms"
                " by turns"
            )
        # A run that is recorded only when it is added could be repeated until it goes well.
        if under_way is None or (under_way.arm, under_way.seed) != due:
            raise LoopError(
                f"Comparison: '{arm}', seed {seed}, has not begun: due() yields it, and writes down that it"
                " does"
            )
        return under_way


def design_of(
    *,
    name: str,
    arms: tuple[str, ...],
    pairs: int,
    first_seed: int,
    required_accuracy: float,
    rules: Compare,
    text: str,
    device: str,
    command: str,
    weights: str = "",
) -> Design:
    """Return what a comparison fixes before its first run, with the machine and the versions it is made on.

    ``text`` decides a run; its hash, that of ``weights`` included where models begin with trained ones,
    distinguishes comparisons.

    Raises:
        DeviceError: the device is not here.
    """
    return Design(
        name=name,
        arms=arms,
        first_seed=first_seed,
        order_seed=ORDER_SEED,
        tolerance_share=rules.tolerance,
        required_accuracy=required_accuracy,
        alpha=ALPHA,
        inference_seconds=rules.inference_seconds,
        inference_batches=rules.inference_batches if rules.inference_seconds else (),
        idle_seconds=rules.idle_seconds,
        foreign_load_share=rules.foreign_load,
        patience=rules.patience,
        recipe_text=text,
        recipe_sha256=hashlib.sha256((f"{text}\n{weights}" if weights else text).encode()).hexdigest(),
        device=choose_device(device).type,
        machine=machine_facts(),
        versions=versions(),
        begun=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        command=command,
        pairs=pairs,
    )


def list_due(record: Record, pair: int | None = None) -> list[tuple[str, int]]:
    """Return arm and seed of the runs that are missing, in their order: of one pair, or of all."""
    design = record.design
    return [
        (arm, design.first_seed + each)
        for each in (range(record.pairs_asked) if pair is None else (pair,))
        for arm in order_of(design.arms, design.order_seed, each)
        if record.run_of(arm, each) is None
    ]


def run_folders_in(out: Path) -> tuple[RunFolder, ...]:
    """Return the run folders below ``out``: one, or one for each training of a run of several."""
    found = sorted(path for path in out.iterdir() if path.is_dir()) if out.is_dir() else []
    return tuple(map(RunFolder, found))


def windows_in(folders: Sequence[RunFolder]) -> tuple[Window, ...]:
    """Return every window that the runs in these folders were charged."""
    return tuple(window for folder in folders for window in folder.energy.parsed(Window))


def _next_position(record: Record) -> int:
    return len(record.runs) + len(record.broken_off)


def _refuse_twice(record: Record, energy_use: EnergyUse) -> None:
    """Refuse what was added for a run before, of any meter.

    It is identified by its receipt; a copy of its windows under another one is for ``_refuse_old_windows``.

    Raises:
        LoopError: it was added before, for a run that counts or one that was set aside.
    """
    for each in _runs_made(record):
        if each.receipt == energy_use.receipt:
            raise LoopError(
                f"Comparison: this was added for '{each.arm}', seed {each.seed}, already; each run is "
                "metered separately"
            )


def _refuse_old_windows(record: Record, energy_use: EnergyUse) -> None:
    """Refuse windows that opened before the last one that was added.

    A simulated clock has no meaning here, and a figure of the user has no start time.

    Raises:
        LoopError: they are older, as windows added twice are.
    """
    windows = [window for each in _runs_made(record) for window in each.windows]
    last = max((window.started for window in windows), default="")
    # A window in which nothing was metered has no classes; then its meter's show whether it is simulated.
    timed = [
        window.started
        for window in energy_use.windows
        if window.started
        and EnergyClass.SIMULATED not in (window.classes or energy_use.method.classes).values()
    ]
    if timed and min(timed) <= last:
        raise LoopError(
            f"Comparison: these windows began at {min(timed)}, and one of a run before at {last}; each run is"
            " metered separately, after the one before it"
        )


def _runs_made(record: Record) -> tuple[ArmRun | BrokenOff, ...]:
    return (*record.runs, *record.broken_off)
