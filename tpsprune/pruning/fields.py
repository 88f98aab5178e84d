"""Strict reading of one JSON object: every fault names its place."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, final

from tpsprune.errors import ArtifactError

__all__ = ["Fields"]


@final
class Fields:
    """One JSON object at ``place`` that has exactly the keys ``known``.

    Every method raises ``ArtifactError`` when the value is of another kind.
    """

    def __init__(self, place: str, raw: object, known: Iterable[str]) -> None:
        if not isinstance(raw, Mapping):
            raise ArtifactError(f"{place}: an object is needed, found {type(raw).__name__}")
        if strange := sorted(set(map(str, raw)) ^ set(known)):
            state = "is missing" if strange[0] in set(known) else "is not known"
            raise ArtifactError(f"{place}: {strange[0]!r} {state}")
        self.place = place
        self.raw = raw

    def fault(self, key: str, needed: str) -> ArtifactError:
        """The error for a value that is not what is needed."""
        return ArtifactError(f"{self.place}.{key}: {needed} needed, found {json.dumps(self.raw[key])[:60]}")

    def number(self, key: str) -> float:
        """A share above 0 and at most 1."""
        value = self.raw[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise self.fault(key, "a share above 0 and at most 1 is")
        return float(value)

    def count(self, key: str) -> int:
        """A whole number from 0."""
        value = self.raw[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.fault(key, "a whole number from 0 is")
        return value

    def text(self, key: str) -> str:
        """A text."""
        value = self.raw[key]
        if not isinstance(value, str):
            raise self.fault(key, "a text is")
        return value

    def items(self, key: str) -> list[Any]:
        """A list of anything."""
        value = self.raw[key]
        if not isinstance(value, list):
            raise self.fault(key, "a list is")
        return value

    def counts(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers from 0."""
        values = self.items(key)
        if any(isinstance(value, bool) or not isinstance(value, int) or value < 0 for value in values):
            raise self.fault(key, "a list of whole numbers from 0 is")
        return tuple(values)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        values = self.items(key)
        if not all(isinstance(value, str) for value in values):
            raise self.fault(key, "a list of texts is")
        return tuple(values)

    def text_map(self, key: str) -> dict[str, str]:
        """An object whose values are texts."""
        value = self.raw[key]
        if not isinstance(value, Mapping) or not all(isinstance(each, str) for each in value.values()):
            raise self.fault(key, "an object of texts is")
        return dict(value)

    def entries(self, key: str, known: Iterable[str]) -> list[tuple[str, Fields]]:
        """A list of objects, each with its place."""
        return [
            (f"{self.place}.{key}[{i}]", Fields(f"{self.place}.{key}[{i}]", each, known))
            for i, each in enumerate(self.items(key))
        ]
