"""Rows of the one-shot benchmark, and the journal that lets a benchmark that was killed go on.

One JSON line a row, appended at once. The journal's name holds a hash of the code measured: figures of
another version are never taken for this one's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MEASURED = (
    "tpsprune/pruning/**/*.py",
    "tpsprune/numerics/*.py",
    "tpsprune/recipe/*.py",
    "benchmarks/zoo/*.py",
    *(f"benchmarks/one_shot_{part}.py" for part in ("cuts", "methods", "heal", "speed", "time")),
)
"""What could change a figure. How it is shown could not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One cut: ``score`` is test accuracy, ``problem`` says why there is none."""

    net: str
    seed: int
    method: str
    share: float
    score: float | None = None
    macs_share: float | None = None
    seconds: float = 0.0
    problem: str | None = None
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int, str, float]:
        """What was options: the same key is never computed twice."""
        return self.net, self.seed, self.method, self.share


class Journal:
    """Rows on disk, the last of each key counting; a last line cut off by a kill is not read."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._rows: dict[tuple[str, int, str, float], Row] = {}
        if file.is_file():
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    row = Row(**json.loads(line))
                except (json.JSONDecodeError, TypeError):
                    continue
                self._rows[row.key] = row

    @property
    def rows(self) -> tuple[Row, ...]:
        """Every row, in the order in which they were first written."""
        return tuple(self._rows.values())

    def missing(self, keys: Iterable[tuple[str, int, str, float]]) -> list[tuple[str, int, str, float]]:
        """Return the keys without a row; one with a problem is tried again."""
        return [key for key in keys if key not in self._rows or self._rows[key].problem is not None]

    def add(self, row: Row) -> None:
        """Append a row. Lines from several processes do not mix: each is one write to the end."""
        self._rows[row.key] = row
        self.file.parent.mkdir(parents=True, exist_ok=True)
        whole = not self.file.is_file() or self.file.read_bytes()[-1:] in {b"", b"\n"}
        line = ("" if whole else "\n") + json.dumps(asdict(row)) + "\n"
        handle = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)


def fingerprint(root: Path) -> str:
    """Return eight hexadecimal digits of everything that could change a figure."""
    digest = hashlib.sha256()
    for pattern in MEASURED:
        for file in sorted(root.glob(pattern)):
            digest.update(file.relative_to(root).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:8]
