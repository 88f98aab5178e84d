"""Energy by windows: ``Meter``, what one run took (``EnergyUse``), and a run phase by phase (``Ledger``)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from math import isfinite
from numbers import Real
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, final
from uuid import uuid4

from tpsprune import energy
from tpsprune.energy import AbstractMeter, MeteredSpan
from tpsprune.errors import Fault, LoopError, RecipeError, TpspruneError
from tpsprune.recipe.settings import read_section
from tpsprune.recipe.train import Energy
from tpsprune.records import (
    Cost,
    EnergyClass,
    EnergyMethod,
    PhaseEnergy,
    Window,
    classes_of,
    dump,
    joules_of,
    load,
    seconds_of,
)
from tpsprune.runs import Journal

if TYPE_CHECKING:
    from tpsprune.numerics.peers import AbstractPeers

MAX_WINDOW_SECONDS: Final = 240.0
"""A RAPL counter may wrap twice in a longer window, and a wrap is made good only once."""
USER_METER: Final = "numbers of the user"
"""The meter of figures that no meter of ours took."""
SOURCES: Final = {
    "wall": EnergyClass.MEASURED,
    "counters": EnergyClass.MEASURED,
    "model": EnergyClass.MODELLED,
    "constant": EnergyClass.CONSTANT,
}


def is_number(value: Any) -> bool:
    """Return whether it is one finite number, NumPy's among them; a truth value is none.

    >>> is_number(2), is_number(0.5), is_number(True), is_number("2"), is_number(float("nan"))
    (True, True, False, False, False)
    """
    try:
        return not isinstance(value, bool) and isinstance(value, Real) and isfinite(value)
    except OverflowError:  # a whole number larger than any float
        return False


@final
@dataclass(frozen=True, slots=True)
class EnergyUse:
    """The windows of one run, and the method by which they were metered; ``Meter.take`` makes it.

    Two may hold the same figures; ``receipt`` tells whether they are one and the same, added twice.

    >>> import tpsprune
    >>> spent = tpsprune.EnergyUse.of_numbers(joules=5200.0, seconds=310.0, source="wall")
    >>> spent.joules, spent.energy_class
    (5200.0, 'measured')
    """

    windows: tuple[Window, ...]
    method: EnergyMethod
    receipt: str = field(default_factory=lambda: uuid4().hex, repr=False, compare=False)

    @property
    def joules(self) -> float | None:
        """The sum over windows; ``None`` where one of them was not metered, or there is none."""
        return joules_of(self.windows)

    @property
    def seconds(self) -> float:
        """The sum of their wall seconds."""
        return seconds_of(self.windows)

    @property
    def energy_class(self) -> str:
        """How the joules were obtained: the classes of all components."""
        return classes_of(self.windows)

    @classmethod
    def of_numbers(
        cls, *, joules: float, seconds: float, source: Literal["wall", "counters", "model", "constant"]
    ) -> Self:
        """Return what a run took by a user's meter, one figure for the whole of it.

        ``source``: a meter at the ``wall``, hardware ``counters``, a power ``model``, or ``constant`` watts
        times seconds. The report repeats the source and that it is the user's. Other programs
        on the machine and the watts behind a model are unknown: figures of ``model`` and ``constant``
        never come to a claim, for its sign might hang on them.

        Raises:
            RecipeError: a figure is not a number above zero, or the source is none of these.
        """
        faults = [
            Fault(name, f"must be a number above 0 (found {value!r})")
            for name, value in (("joules", joules), ("seconds", seconds))
            if not (is_number(value) and value > 0)
        ]
        if not isinstance(source, str) or source not in SOURCES:
            faults.append(Fault("source", f"must be one of {', '.join(SOURCES)} (found {source!r})"))
        if faults:
            raise RecipeError("EnergyUse", faults)
        part = "wall" if source == "wall" else "whole"
        classes = {part: SOURCES[source]}
        window = Window(
            phase="train",
            index=0,
            attempt=0,
            seconds=float(seconds),
            cpu_seconds=0.0,
            joules={part: float(joules)},
            classes=dict(classes),
            started="",
        )
        method = EnergyMethod(
            meter=USER_METER,
            scope="as the user measured it",
            classes=classes,
            details={"source": source},
            excluded=("whatever these numbers leave out",),
        )
        return cls((window,), method)


@final
class Meter:
    """Joules and seconds of spans of work, each figure with how it was obtained. One per process.

    >>> import tpsprune
    >>> with tpsprune.Meter("fake") as meter:  # without an argument: codecarbon
    ...     with meter.window("train") as span:
    ...         total = sum(range(10))
    ...     spent = meter.take()
    >>> span.joules, span.seconds
    (15.0, 1.0)
    >>> {part: (joules, str(kind)) for part, (joules, kind) in span.components.items()}
    {'cpu': (10.0, 'simulated'), 'ram': (5.0, 'simulated')}
    >>> spent.joules, len(spent.windows)
    (15.0, 1)

    Windows follow one another and never nest: a joule is charged once. Queued work of a GPU belongs to the
    window that queued it. A window whose books do not balance has ``span.window.valid`` false and its fault
    in words. Open a new one at least every four minutes, as with each epoch: a processor's counter turns
    over, and only one turn can be detected. What lies between windows is not charged to anything.

    Of several processes that a launcher started on a machine the first one meters, the whole of it; the
    others have seconds and no joules, and ``method.excluded`` says who meters. Which is the first one is read
    from ``LOCAL_RANK``, or where there is none from the rank in ``torch.distributed``: make the meter once
    its process group is initialised.

    Args:
        meter: ``codecarbon`` (counters where the machine has them, else models; one to three seconds once to
            find out about the machine), ``none`` (seconds alone) or ``fake`` (for tests: constant watts); or
            what ``energy.build`` made of a recipe, which has the other arguments already.
        tracking: ``machine`` or ``process``: the scope of what is modelled.
        pue: power usage effectiveness of the data centre; multiplies energy.
        settings: the other fields of ``[energy]``: ``fake_cpu_watts`` and the like.

    Raises:
        RecipeError: a setting does not exist or is out of bounds.
        MeterError: nothing can be metered as requested.
    """

    def __init__(
        self,
        meter: Literal["codecarbon", "fake", "none"] | AbstractMeter = "codecarbon",
        *,
        tracking: Literal["machine", "process"] = "machine",
        pue: float = 1.0,
        **settings: Any,
    ) -> None:
        self._elsewhere = ""
        if not isinstance(meter, AbstractMeter):
            fields = {"meter": meter, "tracking": tracking, "pue": pue, **settings}
            chosen = read_section(Energy, "energy", fields, "Meter")
            self._elsewhere = energy.find_metering_process()
            meter = energy.build(replace(chosen, meter="none") if self._elsewhere else chosen, 0)
        self._meter = meter
        self._windows: list[Window] = []

    @property
    def method(self) -> EnergyMethod:
        """What meters each component, how good it is, and what is left out."""
        method = self._meter.method()
        if not self._elsewhere:
            return method
        return replace(method, excluded=(f"all energy: {self._elsewhere} meters it",))

    @contextmanager
    def window(self, phase: str = "train") -> Iterator[MeteredSpan]:
        """Meter a ``with`` block; what a block took that raises is charged too.

        Raises:
            MeterError: another window is open, or the meter is closed or loses the window.
        """
        span = self._meter.window(phase)
        try:
            with span:
                yield span
        finally:
            if span.is_closed:
                self._windows.append(span.window)

    def take(self) -> EnergyUse:
        """Return the windows closed since the last call, as what one run took.

        Raises:
            LoopError: a window is open, or there is none.
        """
        if self._meter.is_open:
            raise LoopError("Meter: a window is still open; take what was spent after its block")
        if not self._windows:
            raise LoopError("Meter: no window was closed since the last take; with meter.window() makes one")
        windows, self._windows = tuple(self._windows), []
        return EnergyUse(windows, self.method)

    def close(self) -> None:
        """Stop the meter and its processes."""
        self._meter.shut()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@final
class Ledger:
    """Charges the whole time of a run to phases, and journals every window: no joule is lost between them.

    A layer over ``Meter``: one window of it is always open, that of the phase under way. Windows of attempts
    that failed are kept. ``longest_window_seconds``: how long ``split_if_long`` lets one stay open.

    Of several processes all switch together: each finishes its queued work, then waits for the others, so
    that no window ends while another GPU still works for it. One process a machine meters it; the first
    process joins the windows of all machines, and the processor seconds of all processes.
    """

    def __init__(
        self,
        meter: Meter,
        longest_window_seconds: float = MAX_WINDOW_SECONDS,
        peers: AbstractPeers | None = None,
    ) -> None:
        if peers is None:
            # It loads torch, which a meter does without.
            from tpsprune.numerics.peers import ALONE

            peers = ALONE
        self._meter = meter
        self._peers = peers
        self._unsent: list[Window] = []
        self._cpu_seconds = energy.family_cpu_seconds()
        self._longest_window_seconds = longest_window_seconds
        self._journal: Journal | None = None
        self._windows: list[Window] = []
        self._block = ExitStack()
        self._span: MeteredSpan | None = None
        self._phase, self._opened = "", 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The error that ended the run is reported, not that the last window cannot be written either.
        with suppress(TpspruneError) if error is not None else nullcontext():
            try:
                if self._span is not None:
                    # Where one process fails the others may never come to this point.
                    self._close(joins=error is None, ends=error is not None)
            finally:
                self._meter.close()

    @property
    def method(self) -> EnergyMethod:
        """What meters, and how good it is."""
        method = self._meter.method
        if self._peers.nodes == 1:
            return method
        nodes = {"nodes": str(self._peers.nodes)}
        excluded = (*method.excluded, "the network between nodes")
        return replace(method, details={**method.details, **nodes}, excluded=excluded)

    @property
    def windows(self) -> tuple[Window, ...]:
        """All windows of the run so far, of every attempt."""
        return tuple(self._windows)

    @property
    def attempts(self) -> int:
        """How many attempts at the run were charged, this one included."""
        return 1 + max(window.attempt for window in self._windows)

    @property
    def total(self) -> Cost:
        """What the run has cost so far, the open window left out."""
        return energy.total(self._windows)

    @property
    def phases(self) -> dict[str, PhaseEnergy]:
        """The same by phase."""
        return energy.by_phase(self._windows)

    def keep_in(self, journal: Journal) -> None:
        """Journal from now on, and what was closed so far; windows of earlier attempts join the ledger."""
        earlier = journal.parsed(Window)
        journal.append_all(self._windows)
        self._windows = [*earlier, *self._windows]
        self._journal = journal

    def switch(self, phase: str) -> Window | None:
        """Close the open window, if any, and open one of ``phase``; return the closed one."""
        return self._switch(phase, joins=True)

    def _switch(self, phase: str, *, joins: bool) -> Window | None:
        closed = self._close(joins=joins) if self._span is not None else None
        self._span = self._block.enter_context(self._meter.window(phase))
        self._phase, self._opened = phase, time.monotonic()
        return closed

    @contextmanager
    def window(self, phase: str) -> Iterator[MeteredSpan]:
        """Meter a block by itself, charged to a phase; after it the phase under way goes on."""
        before = self._phase
        self.switch(phase)
        assert self._span is not None
        span = self._span
        yield span
        self.switch(before)

    def split_if_long(self) -> Window | None:
        """Close and reopen the phase's window when it has been open for long; return the closed one."""
        if time.monotonic() - self._opened < self._longest_window_seconds:
            return None
        return self._switch(self._phase, joins=False)

    def close(self) -> Window:
        """Close the open window and journal it."""
        return self._close(joins=True)

    def _close(self, *, joins: bool, ends: bool = False) -> Window:
        assert self._span is not None, "a window is open"
        joins = joins and self._peers.size > 1
        others: list[float] = []
        if joins:
            energy.finish_queued_work()
            self._peers.call_roll(f"the end of '{self._phase}'")
            now = energy.family_cpu_seconds()
            others = self._peers.gather(now - self._cpu_seconds)
            self._cpu_seconds = now
        span, self._span = self._span, None
        self._block.close()
        closed = span.window
        if joins:
            closed = self._joined(closed, others)
        elif self._peers.nodes > 1:
            self._unsent.append(closed)
            if ends:
                self._lose_unsent()
            return closed
        self._keep([closed])
        return closed

    def _keep(self, windows: Sequence[Window]) -> None:
        self._windows.extend(windows)
        if self._journal is not None:
            self._journal.append_all(windows)

    def _lose_unsent(self) -> None:
        """Keep windows of this node whose others will never be known: without joules, and not valid."""
        lost, self._unsent = self._unsent, []
        fault = "the other nodes did not report: the run was broken off"
        self._keep([replace(each, joules={}, valid=False, fault=each.fault or fault) for each in lost])

    def _joined(self, own: Window, cpu_seconds: Sequence[float]) -> Window:
        """Return a window with what other processes and nodes took since the last."""
        peers, unsent = self._peers, [*self._unsent, own]
        # What was split off meanwhile could not be joined, and is kept now.
        held, self._unsent = self._unsent, []
        if held:
            self._keep(held)
        if peers.nodes > 1:
            sent = [dump(each) for each in unsent] if peers.is_first_of_node else []
            of_node: dict[int, list[Window]] = {node: [] for node in range(1, peers.nodes)}
            for node, windows in peers.gather((peers.node, sent)):
                if node and windows:
                    of_node[node] = [load(Window, each) for each in windows]
            without_time = {
                node: [replace(each, cpu_seconds=0.0) for each in windows]
                for node, windows in of_node.items()
            }
            own = energy.join_nodes(own, without_time)
        beside = sum(each for rank, each in enumerate(cpu_seconds) if rank != peers.rank)
        return replace(own, cpu_seconds=own.cpu_seconds + beside)
