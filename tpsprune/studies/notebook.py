"""The trainings of a study on disk: each is done once, and only those of equal settings stand together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from tpsprune.errors import RunFolderError
from tpsprune.runs import Journal
from tpsprune.studies.finding import Done

__all__ = ["Notebook"]


@final
@dataclass(frozen=True, slots=True)
class Notebook:
    """A journal of finished trainings; ``head`` is what every line must say of how they were done.

    ``record`` rebuilds a training from what its line holds.
    """

    SCHEMA: ClassVar[str] = "tpsprune.study-training/1"

    path: Path
    head: Mapping[str, Any]
    record: Callable[[dict[str, Any]], Done]

    def read(self) -> tuple[Done, ...]:
        """Return the trainings that are done, in the order they were done.

        Raises:
            RunFolderError: the journal is damaged, or is of another study, other settings or another kind of
                machine; the message names the first difference.
        """
        records, _ = Journal(self.path).read()
        for number, record in enumerate(records, start=1):
            self._refuse_foreign(number, record)
        return tuple(self.record(record["training"]) for record in records)

    def append(self, trained: Done) -> None:
        """Keep a finished training: it is on the disk when this returns.

        Raises:
            RunFolderError: it cannot be written.
        """
        Journal(self.path).append({"schema": self.SCHEMA, **self.head, "training": trained.to_json()})

    def _refuse_foreign(self, number: int, record: Mapping[str, Any]) -> None:
        wanted = {"schema": self.SCHEMA, **self.head}
        found = {key: value for key, value in record.items() if key != "training"}
        differences = _differences(found, wanted)
        if differences:
            raise RunFolderError(
                f"{self.path} line {number} is of another study or of other settings: {differences[0]}; "
                "run with the settings it was begun with, or write elsewhere with --out"
            )


def _differences(found: Any, wanted: Any, place: str = "") -> list[str]:
    """Return in words where two JSON values differ, by dotted place."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        return [
            line
            for key in (*wanted, *(key for key in found if key not in wanted))
            for line in _differences(found.get(key), wanted.get(key), f"{place}.{key}" if place else key)
        ]
    return [] if found == wanted else [f"{place} is {found!r} there and {wanted!r} here"]
