"""The journal of a comparison: what was fixed, then every run, flushed to the disk as it ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar, final

from tpsprune.errors import RunFolderError
from tpsprune.records import (
    ArmRun,
    BrokenOff,
    Choices,
    ComparisonRecord,
    Design,
    IdleSpan,
    InferenceSpan,
    StepSpan,
    dump,
    is_newer,
    load,
)
from tpsprune.records.comparison import MostPairs
from tpsprune.records.serial import Natural, Text, shorten
from tpsprune.runs.files import Journal

MAY_DIFFER: Final = {"begun", "command", "pairs"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A run that has begun; without a line that ends it, it was broken off.

    ``folder`` is empty where a loop of the user's own makes the run: its windows come with its record.
    """

    arm: Text
    seed: Natural
    pair: Natural
    position: Natural
    folder: str


@dataclass(frozen=True, slots=True)
class Pairs:
    """Another number of pairs is requested."""

    pairs: MostPairs


@dataclass(frozen=True, slots=True)
class Redo:
    """A finished pair is set aside, and why."""

    pair: Natural
    why: str


Line: TypeAlias = (
    Design | Pairs | Begun | ArmRun | IdleSpan | InferenceSpan | StepSpan | BrokenOff | Redo | Choices
)
KINDS: Final[Mapping[str, type[Line]]] = {
    "design": Design,
    "pairs": Pairs,
    "begun": Begun,
    "run": ArmRun,
    "idle": IdleSpan,
    "inference": InferenceSpan,
    "steps": StepSpan,
    "broken-off": BrokenOff,
    "redo": Redo,
    "choices": Choices,
}


@final
@dataclass(frozen=True, slots=True)
class ComparisonFolder:
    """``reports/NAME`` and the paths in it; ``journal.jsonl`` is all that a report is made from.

    Lines are of one kind each: ``design`` (the first), ``pairs`` (how many are requested), ``begun``,
    ``run``, ``idle``, ``inference``, ``steps``, ``broken-off``, ``redo`` (a pair set aside) and ``choices``.
    """

    path: Path

    @property
    def journal(self) -> Journal:
        """The journal."""
        return Journal(self.path / "journal.jsonl")

    @property
    def runs(self) -> Path:
        """The folder of the run folders; weights are large, and a report needs none."""
        return self.path / "runs"

    @property
    def wall_meter(self) -> Path:
        """Where the readings of a wall meter are kept."""
        return self.path / "wall_meter.csv"

    @property
    def exists(self) -> bool:
        """Whether a comparison was begun here: a first line that a kill truncated is none."""
        return self.journal.path.is_file() and bool(self.journal.read()[0])

    def append(self, kind: str, line: Line | Mapping[str, Any]) -> None:
        """Append one line; see ``append_all``."""
        self.append_all([(kind, line)])

    def append_all(self, lines: Iterable[tuple[str, Line | Mapping[str, Any]]]) -> None:
        """Append lines, each with its kind, in one write; they are on the disk when this returns.

        Raises:
            RunFolderError: they cannot be written.
        """
        self.journal.append_all(
            {"schema": Design.SCHEMA, "kind": kind, **(line if isinstance(line, Mapping) else dump(line))}
            for kind, line in lines
        )

    def read(self) -> tuple[ComparisonRecord, tuple[Begun, ...]]:
        """Return all that was measured, and what has begun and not ended: of each pair one run at most.

        A truncated last line is left out, with a note.

        Raises:
            RunFolderError: there is no journal, it is damaged, of a newer version, or does not begin with a
                design; the message names the line.
        """
        if not self.exists:
            raise RunFolderError(
                f"{self.path} holds no comparison: journal.jsonl is not there; "
                f"'tpsprune compare RECIPE --out {self.path}' makes one"
            )
        records, is_truncated = self.journal.read()
        if not records or records[0].get("kind") != "design":
            raise RunFolderError(f"{self.journal.path} does not begin with a design: it is no comparison's")
        comparison, begun = self._replay(records)
        if is_truncated:
            note = "the journal's last line was truncated, as by a kill, and is left out"
            comparison = replace(comparison, notes=(*comparison.notes, note))
        return comparison, begun

    def _replay(self, records: list[dict[str, Any]]) -> tuple[ComparisonRecord, tuple[Begun, ...]]:
        comparison: ComparisonRecord | None = None
        begun: dict[int | None, Begun] = {}
        for number, record in enumerate(records, 1):
            self._refuse_foreign(number, record)
            try:
                line = load_line(record)
                if fault := _misplaced(comparison, line):
                    raise ValueError(fault)  # noqa: TRY301 -- reported as any other fault of a line
            except ValueError as error:
                raise RunFolderError(
                    f"{self.journal.path} line {number} is no record of a comparison ({error}): "
                    "the file was changed from outside"
                ) from error
            if isinstance(line, Design):
                comparison = ComparisonRecord(design=line, pairs_asked=line.pairs)
            elif isinstance(line, Begun):
                begun[line.pair] = line
            else:
                assert comparison is not None, "the first line is a design"
                comparison = _add(comparison, line)
                if isinstance(line, ArmRun | BrokenOff):
                    begun.pop(line.pair, None)
        assert comparison is not None, "the first line is a design"
        if begun:
            named = ", ".join(f"'{each.arm}', seed {each.seed}," for each in begun.values())
            verb = "has" if len(begun) == 1 else "have"
            comparison = replace(comparison, under_way=f"{named} {verb} begun and not ended")
        return comparison, tuple(begun.values())

    def _refuse_foreign(self, number: int, record: Mapping[str, Any]) -> None:
        found = record.get("schema")
        if is_newer(found, Design.SCHEMA):
            raise RunFolderError(
                f"{self.journal.path} line {number} was written by a newer tpsprune: it is {found}, this one "
                f"reads {Design.SCHEMA}; upgrade"
            )
        kind = record.get("kind")
        if found != Design.SCHEMA or not isinstance(kind, str) or kind not in KINDS:
            raise RunFolderError(
                f"{self.journal.path} line {number} is no record of a comparison (schema "
                f"{shorten(found)}, kind {shorten(kind)})"
            )


def load_line(record: Mapping[str, Any]) -> Line:
    """Return what a line holds, by its ``kind``, which is one of ``KINDS``.

    Raises:
        ValueError: it holds no such record; names the first place that is wrong.
    """
    content = {key: value for key, value in record.items() if key not in {"schema", "kind"}}
    return load(KINDS[record["kind"]], content)


def _misplaced(before: ComparisonRecord | None, line: Line) -> str:
    """Return why a line cannot stand where it does: out of the design, or there already."""
    if isinstance(line, Design):
        if before is not None:
            return "a second design"
        twice = [arm for arm in line.arms if line.arms.count(arm) > 1]
        return f"the arm '{twice[0]}' is there twice" if twice else ""
    if before is None:
        return "it stands before the design"
    if isinstance(line, Begun | ArmRun | BrokenOff | InferenceSpan):
        if line.arm not in before.design.arms and line.pair is not None:
            return f"the design has no arm '{line.arm}'"
        name = f"'{line.arm}', pair {line.pair}"
        if isinstance(line, ArmRun) and before.run_of(line.arm, line.pair) is not None:
            return f"the run of {name}, is there already"
        spans = {(span.arm, span.pair, span.batch) for span in before.inference}
        if isinstance(line, InferenceSpan) and (line.arm, line.pair, line.batch) in spans:
            return f"the inference of {name}, in batches of {line.batch} is there already"
    if isinstance(line, IdleSpan) and any(span.pair == line.pair for span in before.idle):
        return f"the idle baseline of pair {line.pair} is there already"
    return ""


def _add(before: ComparisonRecord, line: Line) -> ComparisonRecord:
    """Return the comparison with one more line of its journal."""
    match line:
        case ArmRun():
            return replace(before, runs=(*before.runs, line))
        case IdleSpan():
            return replace(before, idle=(*before.idle, line))
        case InferenceSpan():
            return replace(before, inference=(*before.inference, line))
        case StepSpan():
            return replace(before, steps=(*before.steps, line))
        case BrokenOff():
            return replace(before, broken_off=(*before.broken_off, line))
        case Choices():
            return replace(before, choices=line)
        case Pairs():
            return _request_pairs(before, line.pairs)
        case Redo():
            return _set_aside(before, line)
        case Design() | Begun():
            raise AssertionError(line)


def _request_pairs(before: ComparisonRecord, pairs: int) -> ComparisonRecord:
    ended = len({run.pair for run in before.runs})
    if not ended:
        return replace(before, pairs_asked=pairs)
    note = (
        f"the requested pairs were changed from {before.pairs_asked} to {pairs} after the results of {ended}"
    )
    return replace(before, pairs_asked=pairs, looks=before.looks + 1, notes=(*before.notes, note))


S = TypeVar("S", ArmRun, IdleSpan, InferenceSpan, StepSpan)


def _set_aside(before: ComparisonRecord, redo: Redo) -> ComparisonRecord:
    def others(spans: tuple[S, ...]) -> tuple[S, ...]:
        return tuple(span for span in spans if span.pair != redo.pair)

    set_aside = tuple(
        BrokenOff(
            arm=run.arm,
            seed=run.seed,
            pair=run.pair,
            position=run.position,
            windows=run.windows,
            why=redo.why,
            receipt=run.receipt,
        )
        for run in before.runs
        if run.pair == redo.pair
    )
    return replace(
        before,
        runs=others(before.runs),
        idle=others(before.idle),
        inference=others(before.inference),
        steps=others(before.steps),
        broken_off=(*before.broken_off, *set_aside),
    )


def begin_or_match(folder: ComparisonFolder, design: Design, elsewhere: str) -> ComparisonRecord:
    """Write the design where there is none yet, else compare it with the one that is there.

    ``elsewhere`` is how to write to another folder. Returns all that was measured.

    Raises:
        RunFolderError: the journal is of other arms, rules, versions or another machine: names the first
            difference.
    """
    if not folder.exists:
        folder.append("design", design)
    comparison, _ = folder.read()
    if differences := list(_differences(comparison.design, design)):
        raise RunFolderError(
            f"{folder.path} holds a comparison with other rules: {differences[0]}; go on with those it was "
            f"begun with, or write elsewhere with {elsewhere}"
        )
    return comparison


def request_pairs(
    folder: ComparisonFolder, comparison: ComparisonRecord, pairs: int | None, typed: str
) -> None:
    """Record that another number of pairs is requested, if one is; ``typed`` is the option as typed.

    Raises:
        RunFolderError: fewer pairs are requested than were fixed.
    """
    if pairs is not None and pairs < comparison.pairs_asked:
        raise RunFolderError(
            f"{folder.path}: {comparison.pairs_asked} pairs were fixed, and fewer ({typed}) would be "
            f"chosen by their results: request {comparison.pairs_asked} or more"
        )
    if pairs is not None and pairs != comparison.pairs_asked:
        folder.append("pairs", Pairs(pairs))


def _differences(there: Design, here: Design) -> Iterator[str]:
    before, now = dump(there), dump(here)
    for key in before:
        if key not in MAY_DIFFER and before[key] != now[key]:
            yield _difference(key, before[key], now[key])


def _difference(key: str, before: Any, now: Any) -> str:
    if key == "recipe_text":
        lines = (
            pair for pair in zip(before.splitlines(), now.splitlines(), strict=False) if pair[0] != pair[1]
        )
        before, now = next(lines, (f"{len(before)} characters", f"{len(now)} characters"))
        key = "the recipe"
    if isinstance(before, dict):
        changed = next(name for name in {**before, **now} if before.get(name) != now.get(name))
        key, before, now = f"{key}.{changed}", before.get(changed), now.get(changed)
    return f"{key} is {before!r} there and {now!r} here"
