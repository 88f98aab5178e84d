"""The journal of a comparison: what was fixed, then every run, flushed to the disk as it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from tpsprune.errors import RunFolderError
from tpsprune.records import ArmRun, BrokenOff, Choices, Comparison, Design, IdleSpan, InferenceSpan
from tpsprune.runs.journal import Journal
from tpsprune.runs.schemas import is_newer

__all__ = ["Begun", "ComparisonFolder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A run that has begun; without a line that ends it, it was broken off.

    ``folder`` is empty where a loop of the user's own makes the run: its windows are known once handed in.
    """

    arm: str
    seed: int
    pair: int
    position: int
    folder: str


@final
@dataclass(frozen=True, slots=True)
class ComparisonFolder:
    """``reports/NAME`` and the paths in it; ``journal.jsonl`` is all that a report is made from.

    Lines are of one kind each: ``design`` (the first), ``pairs`` (how many are asked for), ``begun``,
    ``run``, ``idle``, ``answers``, ``broken-off``, ``redo`` (a pair set aside) and ``choices``.
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
        """Whether a comparison was begun here: a first line that a kill cut off is none."""
        return self.journal.path.is_file() and bool(self.journal.read()[0])

    def append(self, kind: str, content: Mapping[str, Any]) -> None:
        """Append one line; it is on the disk when this returns.

        Raises:
            RunFolderError: it cannot be written.
        """
        self.journal.append({"schema": Design.SCHEMA, "kind": kind, **content})

    def read(self) -> tuple[Comparison, Begun | None]:
        """Return all that was measured, and the run that has begun and not ended, if any.

        A cut-off last line is left out, and a note says so.

        Raises:
            RunFolderError: there is no journal, it is damaged, of a newer version, or does not begin with a
                design; the message names the line.
        """
        if not self.exists:
            raise RunFolderError(
                f"{self.path} holds no comparison: journal.jsonl is not there; "
                f"'tpsprune compare RECIPE --out {self.path}' makes one"
            )
        records, cut_off = self.journal.read()
        if not records or records[0].get("kind") != "design":
            raise RunFolderError(f"{self.journal.path} does not begin with a design: it is no comparison's")
        comparison, begun = self._folded(records)
        if cut_off:
            note = "the journal's last line was cut off, as a kill leaves it, and is left out"
            comparison = replace(comparison, notes=(*comparison.notes, note))
        return comparison, begun

    def _folded(self, records: list[dict[str, Any]]) -> tuple[Comparison, Begun | None]:
        comparison, begun = None, None
        for number, record in enumerate(records, 1):
            self._refuse_foreign(number, record)
            kind = record["kind"]
            content = {key: value for key, value in record.items() if key not in {"schema", "kind"}}
            try:
                if kind == "design":
                    comparison = _begun_comparison(content, comparison)
                elif kind == "begun":
                    begun = Begun(**content)
                else:
                    assert comparison is not None, "the first line is a design"
                    comparison = FOLDS[kind](comparison, content)
                    begun = None if kind in {"run", "broken-off"} else begun
            except (KeyError, TypeError, ValueError) as error:
                raise RunFolderError(
                    f"{self.journal.path} line {number} is no record of a comparison ({error!r}): "
                    "the file was changed from outside"
                ) from error
        assert comparison is not None, "the first line is a design"
        if begun is not None:
            words = f"'{begun.arm}', seed {begun.seed}, has begun and not ended"
            comparison = replace(comparison, under_way=words)
        return comparison, begun

    def _refuse_foreign(self, number: int, record: Mapping[str, Any]) -> None:
        found = record.get("schema")
        if is_newer(found, Design.SCHEMA):
            raise RunFolderError(
                f"{self.journal.path} line {number} was written by a newer tpsprune: it is {found}, this one "
                f"reads {Design.SCHEMA}; upgrade"
            )
        if found != Design.SCHEMA or record.get("kind") not in {"design", "begun", *FOLDS}:
            raise RunFolderError(
                f"{self.journal.path} line {number} is no record of a comparison (schema {found!r}, kind "
                f"{record.get('kind')!r})"
            )


def _begun_comparison(content: dict[str, Any], earlier: Comparison | None) -> Comparison:
    if earlier is not None:
        raise ValueError("a second design")
    design = Design.from_json(content)
    return Comparison(design=design, pairs_asked=design.pairs)


def _pairs(comparison: Comparison, content: dict[str, Any]) -> Comparison:
    asked, before = content["pairs"], comparison.pairs_asked
    ended = len({run.pair for run in comparison.runs})
    if not ended:
        return replace(comparison, pairs_asked=asked)
    note = f"pairs asked for were changed from {before} to {asked} after {ended} could be looked at"
    looks = comparison.looks + 1
    return replace(comparison, pairs_asked=asked, looks=looks, notes=(*comparison.notes, note))


def _redo(comparison: Comparison, content: dict[str, Any]) -> Comparison:
    pair = content["pair"]
    gone = [
        BrokenOff(
            arm=run.arm,
            seed=run.seed,
            pair=pair,
            position=run.position,
            windows=run.windows,
            why=content["why"],
            receipt=run.receipt,
        )
        for run in comparison.runs
        if run.pair == pair
    ]
    return replace(
        comparison,
        runs=tuple(run for run in comparison.runs if run.pair != pair),
        idle=tuple(span for span in comparison.idle if span.pair != pair),
        inference=tuple(span for span in comparison.inference if span.pair != pair),
        broken_off=(*comparison.broken_off, *gone),
    )


def _appended(field: str, parse: Callable[[dict[str, Any]], Any]) -> Callable[..., Comparison]:
    def fold(comparison: Comparison, content: dict[str, Any]) -> Comparison:
        longer: dict[str, Any] = {field: (*getattr(comparison, field), parse(content))}
        return replace(comparison, **longer)

    return fold


def _choices(comparison: Comparison, content: dict[str, Any]) -> Comparison:
    return replace(comparison, choices=Choices.from_json(content))


FOLDS: dict[str, Callable[[Comparison, dict[str, Any]], Comparison]] = {
    "pairs": _pairs,
    "run": _appended("runs", ArmRun.from_json),
    "idle": _appended("idle", IdleSpan.from_json),
    "answers": _appended("inference", InferenceSpan.from_json),
    "broken-off": _appended("broken_off", BrokenOff.from_json),
    "redo": _redo,
    "choices": _choices,
}
"""How each kind of line adds to what was read before it."""
