"""The processes that work on one run: ``Alone``, or ``Gathered`` in a process group of ``torch.distributed``.

A value that is passed down as an argument: what works on a part of the data does its own part and sums up,
what decides is computed once and told. ``shards`` are the logical parts that work is cut into: results hang
on their number, not on how many processes there are, for a process takes several where there are fewer
processes than shards.

What is told is JSON or tensors, never pickled objects.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from datetime import timedelta
from itertools import zip_longest
from typing import Any, Final, Self, TypeVar, final

import torch
from torch import Tensor, distributed, nn

from tpsprune.errors import PeersError, PruneError, TpspruneError, first_line
from tpsprune.records.serial import shorten

T = TypeVar("T")
BUCKET_BYTES: Final = 2**25
"""Tensors are joined to messages of about this size: few waits, and no copy of a whole model."""
ANSWER: Final = timedelta(days=2)
"""How long a decision may take while the others wait: one process cuts and repairs a large model."""
SILENCE: Final = timedelta(minutes=30)
"""How long a process waits for the gradients of another, or for it to come to the end of a phase."""
ROLL_CALL: Final = timedelta(seconds=10)
"""How long it may take to find out which process has fallen silent."""
MEETING: Final = timedelta(minutes=10)
"""How long a process waits for the others to come to the same call."""

_GONE: Final = "another process of this run has ended, or does not answer"
_GO_ON: Final = "its own message says why; a run that has begun goes on with --resume"


class AbstractPeers(ABC):
    """Processes that run the same code on the same run; ``rank`` counts them from 0."""

    rank: int
    size: int
    shards: int
    node: int = 0
    nodes: int = 1
    is_first_of_node: bool = True
    """Whether it is this process that meters its machine."""

    @property
    def is_first(self) -> bool:
        """Whether this process decides, writes and prints."""
        return self.rank == 0

    @property
    def own_shards(self) -> range:
        """The shards that are this process's."""
        return range(self.rank, self.shards, self.size)

    @abstractmethod
    def with_shards(self, shards: int) -> Self:
        """Return the same processes with work cut into another number of shards.

        Raises:
            PeersError: the processes cannot share them evenly.
        """

    @abstractmethod
    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all processes, in place; the same bits everywhere."""

    @abstractmethod
    def write(self, tensors: Sequence[Tensor], by: int = 0) -> None:
        """Replace tensors by those of one process, the first if no other is named, in place."""

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank; JSON."""

    @abstractmethod
    def first(self, make: Callable[[], Any], by: int = 0) -> Any:
        """Return what one process alone computes, the first if no other is named: JSON, the same everywhere.

        Raises:
            TpspruneError: it raised one; everywhere.
        """

    @abstractmethod
    def first_tensors(self, make: Callable[[], Mapping[str, Tensor]], by: int = 0) -> dict[str, Tensor]:
        """Return tensors that one process alone computes, by name, on the devices they have there."""

    @property
    def last(self) -> int:
        """The rank that takes single tasks off the first one, which has others."""
        return self.size - 1

    def deal(
        self, parts: Sequence[T], solve: Callable[[T], Any], cost: Callable[[T], float] = lambda _: 1.0
    ) -> list[Any]:
        """Return what ``solve`` makes of each part, each computed by one process; JSON.

        The costliest go first, each to the process with the least to do.
        """
        loads = [0.0] * self.size
        own: list[int] = []
        for place in sorted(range(len(parts)), key=lambda place: -cost(parts[place])):
            rank = loads.index(min(loads))
            loads[rank] += cost(parts[place])
            own += [place] if rank == self.rank else []
        solved = self.gather([(place, solve(parts[place])) for place in own])
        return [
            value for _, value in sorted((each for own in solved for each in own), key=lambda each: each[0])
        ]

    def together(self, make: Callable[[], T]) -> T:
        """Return what this process makes; where one raises a fault of the user's, all do.

        Raises:
            TpspruneError: the first that was raised; its rank is named where it is not the first process's.
        """
        made: list[T] = []
        fault = ""
        try:
            made.append(make())
        except TpspruneError as error:
            if self.size == 1 or error.is_everywhere:
                raise
            fault, own = str(error) or type(error).__name__, error
        for rank, found in enumerate(self.gather(fault)):
            if found:
                is_own = rank == self.rank == 0
                raise self._told(own if is_own else PeersError(f"rank {rank}: {found}" if rank else found))
        return made[0]

    def agree(
        self,
        what: str,
        value: Any,
        remedy: str = "start all with the same files, options and versions",
    ) -> None:
        """Refuse values that differ between processes.

        Raises:
            PeersError: names ``what`` and two values that differ.
        """
        values = self.gather(value)
        for rank, found in enumerate(values):
            if found != values[0]:
                first, other = (shorten(each) for each in _first_difference(values[0], found))
                error = PeersError(
                    f"the processes disagree on {what}: {first} on rank 0, {other} on rank {rank}; {remedy}"
                )
                raise self._told(error)

    def _told(self, error: TpspruneError) -> TpspruneError:
        error.is_told, error.is_everywhere = not self.is_first, True
        return error

    def meet(self, call: str) -> None:  # noqa: B027 -- one process has nobody to wait for
        """Wait until all processes have come to the same call; not longer than ``MEETING``.

        Raises:
            PeersError: one has not come, or has come to another call: names both.
        """

    def call_roll(self, place: str) -> None:  # noqa: B027 -- one process has nobody to miss
        """Wait until all processes have come to a place; not longer than ``SILENCE``.

        Raises:
            PeersError: one has not come; names it.
        """

    def any(self, flag: bool) -> bool:
        """Return whether it holds in some process."""
        return any(self.gather(flag)) if self.size > 1 else flag


@final
class Alone(AbstractPeers):
    """One process, which may work through several shards."""

    def __init__(self, shards: int = 1) -> None:
        self.rank, self.size, self.shards = 0, 1, shards

    def with_shards(self, shards: int) -> Self:
        """Return one process with so many shards."""
        return type(self)(shards)

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Leave them."""

    def write(self, tensors: Sequence[Tensor], by: int = 0) -> None:
        """Leave them."""

    def gather(self, value: Any) -> list[Any]:
        """Return its own."""
        return [value]

    def first(self, make: Callable[[], Any], by: int = 0) -> Any:  # noqa: ARG002
        """Return what it makes."""
        return make()

    def first_tensors(
        self,
        make: Callable[[], Mapping[str, Tensor]],
        by: int = 0,  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """Return what it makes."""
        return dict(make())


ALONE: Final = Alone()


@final
class Gathered(AbstractPeers):
    """The processes of the default process group, which has been initialised.

    Decisions go over a group of gloo of their own, whatever moves gradients: they are bytes of the host's.
    ``machine`` identifies the machine this process is on; processes of one are a node.
    """

    def __init__(self, shards: int, machine: str = "") -> None:
        self.rank, self.size, self.shards = distributed.get_rank(), distributed.get_world_size(), shards
        self._words = distributed.new_group(backend="gloo", timeout=ANSWER)
        self._door = self._words
        # Its own: but for the first process a barrier is as patient as its group.
        self._roll = distributed.new_group(backend="gloo", timeout=SILENCE)
        self._bulk: distributed.ProcessGroup | None = None
        machines = self.gather(machine)
        distinct = list(dict.fromkeys(machines))
        self.node, self.nodes = distinct.index(machine), len(distinct)
        self.is_first_of_node = machines.index(machine) == self.rank

    @classmethod
    def met(cls, call: str) -> Self:
        """Return the processes of a group that somebody else has initialised, once all have come to a call.

        Whatever moves gradients there, tensors are told over gloo: they have to be on the host.

        Raises:
            PeersError: as ``meet``.
        """
        try:
            door = distributed.new_group(backend="gloo", timeout=MEETING)
        except RuntimeError as error:
            raise _missed(call, error) from error
        found = cls(distributed.get_world_size())
        found._door, found._bulk = door, found._words
        found.meet(call)
        return found

    def meet(self, call: str) -> None:
        """Wait at a barrier that names who is missing, then compare calls."""
        try:
            distributed.monitored_barrier(group=self._door, timeout=MEETING, wait_all_ranks=True)
        except RuntimeError as error:
            raise _missed(call, error) from error
        self.agree("what they call", call)

    def with_shards(self, shards: int) -> Self:
        """Return these processes with so many shards; each has the same number of them."""
        if shards % self.size:
            *most, last = [str(each) for each in range(1, shards + 1) if shards % each == 0]
            raise PeersError(
                f"{self.size} processes cannot share {shards} shards evenly (train.shards, or those that the "
                f"run was begun with): start {' or '.join((', '.join(most), last)) if most else last}"
            )
        other = copy(self)
        other.shards = shards
        return other

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add up, a bucket at a time."""
        for bucket in _buckets(tensors):
            flat = torch.cat([each.reshape(-1) for each in bucket])
            with self._moving():
                distributed.all_reduce(flat, group=self._bulk)
            _spill(flat, bucket)

    def write(self, tensors: Sequence[Tensor], by: int = 0) -> None:
        """Send those of one process, a bucket at a time."""
        for bucket in _buckets(tensors):
            flat = torch.cat([each.reshape(-1) for each in bucket])
            # As bytes: gloo knows no float8 and no integers of 16 bits.
            with self._moving():
                distributed.broadcast(flat.view(torch.uint8), src=by, group=self._bulk)
            _spill(flat, bucket)

    def gather(self, value: Any) -> list[Any]:
        """Send words of different lengths: first the lengths, then all padded to the longest."""
        own = _encode(value)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with _answering():
            distributed.all_gather(lengths, torch.tensor([len(own)]), group=self._words)
        longest = max(int(each) for each in lengths)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(own)] = own
        found = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        with _answering():
            distributed.all_gather(found, padded, group=self._words)
        return [_decode(each[: int(length)]) for each, length in zip(found, lengths, strict=True)]

    def first(self, make: Callable[[], Any], by: int = 0) -> Any:
        """Compute on one rank; a fault is told like a value: nobody waits for one that never comes."""
        told: Any = None
        fault: Exception | None = None
        if self.rank == by:
            try:
                told = {"value": make()}
            except Exception as error:  # noqa: BLE001 -- raised again below, when the others know
                fault, told = (
                    error,
                    {"fault": str(error) or type(error).__name__, "kind": type(error).__name__},
                )
        told = self._tell(told, by)
        if fault is not None:
            if isinstance(fault, TpspruneError):
                fault.is_everywhere = True
            raise fault
        if "fault" in told:
            # A refused cut is caught, where another plan may do; all are to try that one then.
            kind = PruneError if told["kind"] == PruneError.__name__ else PeersError
            raise self._told(kind(told["fault"]))
        return told["value"]

    def first_tensors(self, make: Callable[[], Mapping[str, Tensor]], by: int = 0) -> dict[str, Tensor]:
        """Tell names, shapes and types, then the numbers."""
        made: dict[str, Tensor] = {}

        def describe() -> list[tuple[str, list[int], str, str]]:
            made.update(make())
            return [
                (name, list(each.shape), str(each.dtype).removeprefix("torch."), each.device.type)
                for name, each in made.items()
            ]

        described = self.first(describe, by)
        if self.rank != by:
            made = {
                name: torch.empty(shape, dtype=getattr(torch, dtype), device=device)
                for name, shape, dtype, device in described
            }
        self.write([each for each in made.values() if each.numel()], by)
        return made

    def call_roll(self, place: str) -> None:
        """Wait at a barrier that names who is missing; the others know less, and do not print it."""
        if (who := self._missing(SILENCE)) is not None:
            missing = f"{who} has not come to {place} within {SILENCE.total_seconds():g} s"
            raise PeersError(f"{missing if who else _GONE}: {_GO_ON}")

    def _missing(self, patience: timedelta) -> str | None:
        """Return who does not come to a barrier: nothing where another finds that out, None if all do."""
        try:
            distributed.monitored_barrier(group=self._roll, timeout=patience, wait_all_ranks=True)
        except RuntimeError as error:
            found = re.search(r"Ranks? ([\d, ]+) failed", str(error))
            return f"rank {found[1].strip()}" if found else ""
        return None

    @contextmanager
    def _moving(self) -> Iterator[None]:
        """Say in words that tensors of another process have not come, and whose where that can be told."""
        try:
            yield
        except RuntimeError as error:
            # Of one that has ended its neighbours alone know: they say so at once, and the others then know.
            who = self._missing(ROLL_CALL) if "timed out" in str(error).lower() else None
            raise _gone(error, f"{who} does not answer" if who else _GONE) from error

    def _tell(self, value: Any, by: int) -> Any:
        own = _encode(value) if self.rank == by else torch.empty(0, dtype=torch.uint8)
        length = torch.tensor([len(own)])
        with _answering():
            distributed.broadcast(length, src=by, group=self._words)
        told = own if self.rank == by else torch.empty(int(length), dtype=torch.uint8)
        with _answering():
            distributed.broadcast(told, src=by, group=self._words)
        return value if self.rank == by else _decode(told)


@contextmanager
def _answering() -> Iterator[None]:
    """Say in words that another process is gone, or too slow."""
    try:
        yield
    except RuntimeError as error:
        raise _gone(error, _GONE) from error


def _gone(error: RuntimeError, who: str) -> PeersError:
    reason = first_line(error).partition(". This is typically")[0]
    return PeersError(f"{who} ({reason}): {_GO_ON}")


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor whole that lies in parts on several processes, else itself; all must ask together."""
    full = getattr(tensor, "full_tensor", None)
    found: Tensor = tensor if full is None else full()
    return found


def own_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor that lies in parts on several, else itself."""
    local = getattr(tensor, "to_local", None)
    found: Tensor = tensor if local is None else local()
    return found


def fingerprint(model: nn.Module) -> list[float]:
    """Return sums over a model's tensors that equal weights have in common: nearly no others do.

    Of a model that lies in parts, of what every process holds.
    """
    held = (each for each in model.state_dict().values() if not hasattr(each, "full_tensor"))
    sums = [torch.stack([each.sum(), each.abs().sum()]) for each in map(_as_numbers, held)]
    found: list[float] = torch.stack(sums).sum(0).tolist() if sums else []
    return found


def _missed(call: str, error: RuntimeError) -> PeersError:
    return PeersError(
        f"{call}: not every process of this job has come here within {MEETING.total_seconds():g} s "
        f"({first_line(error)}); all make the calls of a replicated model: for one process alone pass "
        "replicated=False, or the module inside DistributedDataParallel"
    )


def _as_numbers(tensor: Tensor) -> Tensor:
    kind = torch.float32 if tensor.device.type == "mps" else torch.float64
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).to(kind)


def _first_difference(ours: Any, theirs: Any) -> tuple[Any, Any]:
    """Return the first lines of two texts, or values of two mappings, that differ; else both as they are."""
    if isinstance(ours, str) and isinstance(theirs, str):
        pairs = zip_longest(ours.splitlines(), theirs.splitlines(), fillvalue="")
        return next(((a, b) for a, b in pairs if a != b), (ours, theirs))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = (name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
        return next(
            ((f"{name} {ours.get(name)}", f"{name} {theirs.get(name)}") for name in names), (ours, theirs)
        )
    return ours, theirs


def _encode(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _decode(words: Tensor) -> Any:
    return json.loads(bytes(words.numpy()))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield tensors of one type and device, each time about a bucket full, in their order."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for each in tensors:
        kinds.setdefault((each.dtype, each.device), []).append(each)
    for own in kinds.values():
        bucket: list[Tensor] = []
        held = 0
        for each in own:
            bucket.append(each)
            held += each.numel() * each.element_size()
            if held >= BUCKET_BYTES:
                yield bucket
                bucket, held = [], 0
        if bucket:
            yield bucket


def _spill(flat: Tensor, bucket: Sequence[Tensor]) -> None:
    for each, part in zip(bucket, torch.split(flat, [each.numel() for each in bucket]), strict=True):
        each.copy_(part.view(each.shape))
