"""What an export wrote, and how far each format's reloaded ticket is from the run's own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

__all__ = ["Compared", "Exported", "Exporting", "Stamp"]


@dataclass(frozen=True, slots=True)
class Stamp:
    """How to tell that a file is whole: its SHA-256 in hexadecimal, and its size."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One format, reloaded from its files and run on random inputs in batches of several sizes.

    ``largest_difference`` is the largest absolute difference of any score, ``largest_score`` the largest
    absolute score of the run's own ticket; at most ``tolerance_share`` of the second is allowed.
    """

    format: str
    files: tuple[str, ...]
    batches: tuple[int, ...]
    largest_difference: float
    largest_score: float
    tolerance_share: float

    @property
    def allowed(self) -> float:
        """The largest difference that passes."""
        return self.tolerance_share * self.largest_score

    @property
    def is_equal(self) -> bool:
        """Whether the difference passes; one that is not a number does not."""
        return self.largest_difference <= self.allowed


@dataclass(frozen=True, slots=True)
class Exporting:
    """A step that begins: what is done now, of which format."""

    format: str
    doing: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A finished export: its folder, every file in it, and the comparisons, in the order of the formats.

    ``calls`` is the dotted path of what loading it calls, where the model is somebody's own code.
    """

    SCHEMA: ClassVar[str] = "tpsprune.exported/1"

    folder: str
    stamps: dict[str, Stamp]
    compared: tuple[Compared, ...]
    calls: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files, sorted."""
        return tuple(sorted(self.stamps))

    @property
    def largest_difference(self) -> float:
        """The largest difference of any format."""
        return max(each.largest_difference for each in self.compared)

    def to_json(self) -> dict[str, Any]:
        """Return the export as plain JSON values."""
        return {
            "schema": self.SCHEMA,
            "folder": self.folder,
            "files": {name: asdict(stamp) for name, stamp in sorted(self.stamps.items())},
            "compared": [{**asdict(each), "allowed": each.allowed} for each in self.compared],
            "calls": self.calls,
        }
