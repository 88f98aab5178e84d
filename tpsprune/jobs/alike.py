"""Whether machines are alike: descriptions compared, and the first difference told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tpsprune.errors import WorkerError
from tpsprune.records.serial import shorten


@dataclass(frozen=True, slots=True)
class Difference:
    """Two JSON values that differ, at a dotted place of a description."""

    place: str
    found: Any
    wanted: Any

    def tell(self, there: str = "there", here: str = "here") -> str:
        """Return what differs, in words.

        >>> Difference("torch", "2.12", "2.13").tell()
        "torch is '2.12' there and '2.13' here"
        """
        return f"{self.place} is {shorten(self.found)} {there} and {shorten(self.wanted)} {here}"


def find_differences(found: Any, wanted: Any, place: str = "") -> Iterator[Difference]:
    """Yield the differences of two JSON values, by dotted place.

    >>> [each.place for each in find_differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}, "d": 3})]
    ['a.c', 'd']
    """
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for key in (*wanted, *(key for key in found if key not in wanted)):
            yield from find_differences(found.get(key), wanted.get(key), f"{place}.{key}" if place else key)
    elif found != wanted:
        yield Difference(place, found, wanted)


def agree(cluster: str, described: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what all workers say of themselves, by the worker's address.

    Raises:
        WorkerError: two of them differ; names the first difference.
    """
    (first, facts), *others = described.items()
    for worker, each in others:
        for difference in find_differences(each, facts):
            raise WorkerError(
                f"{cluster}: its workers are not alike, and what they find is not put together: "
                f"{difference.tell(f'at {worker}', f'at {first}')}"
            )
    return facts


def refuse_another(cluster: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse what a worker did that came later, and is not as those were that were asked.

    Raises:
        WorkerError: it differs; names the first difference.
    """
    for difference in find_differences(found, wanted):
        raise WorkerError(f"{cluster}: a worker that came later is another: {difference.tell()}")
