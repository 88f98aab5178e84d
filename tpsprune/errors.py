"""What can go wrong for a user: one family.

    TpspruneError              caught by the command line alone, printed without a traceback, exit code 2
    ├── RecipeError            a recipe has faults: all of them, each with its place
    ├── DataError              data is missing, empty, cut short or does not fit the task
    ├── ModelError             a model does not build, or does not fit the data
    ├── DeviceError            the device is not on this machine
    ├── VariantError           a TPS variant does not fit the model or the task
    ├── DivergedError          the loss is no longer a finite number
    ├── PruneError             pruning was refused and rolled back
    ├── MeterError             energy cannot be measured as requested
    ├── LoopError              a piece of the Python API was used as it cannot be
    ├── PeersError             the processes of one run cannot work together
    ├── WorkerError            the workers of a cluster are not there, or cannot do what is asked
    ├── RunFolderError         a run folder is in use or does not hold what it should
    │   └── CannotWriteError   no space, no permission, a read-only place
    └── ArtifactError          an exported file is damaged, foreign or does not fit

Anything else that reaches the command line is a bug of this program: traceback, exit code 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice


def printable(text: str) -> str:
    r"""Return text with whatever would steer a terminal, or cannot be seen, written as an escape.

    Line ends, tabs and no-break spaces stay.

    >>> print(printable("a name\x1b[2J\u202e"))
    a name\x1b[2J\u202e
    """
    if text.isprintable():
        return text
    kept = "\n\t\N{NO-BREAK SPACE}"
    return "".join(
        each if each.isprintable() or each in kept else each.encode("unicode_escape").decode()
        for each in text
    )


class TpspruneError(Exception):
    """A fault the user can repair: the message names the place, what was found and what is expected."""

    is_told = False
    """Whether another process of the run has met it, and says so."""
    is_everywhere = False
    """Whether all processes of the run raise it: nobody waits to hear of it."""

    def __str__(self) -> str:
        return printable(super().__str__())


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a recipe: where, and what is expected."""

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message


class RecipeError(TpspruneError):
    """A recipe cannot be used; holds every fault found, not only the first."""

    def __init__(self, source: str, faults: Iterable[Fault]) -> None:
        self.source = source
        self.faults = tuple(faults)
        super().__init__(str(self))

    def __str__(self) -> str:
        source, *faults = (printable(str(each)).replace("\n", "\\n") for each in (self.source, *self.faults))
        if len(faults) == 1:
            return f"{source}: {faults[0]}"
        lines = "".join(f"\n  {fault}" for fault in faults)
        return f"{source} has {len(faults)} faults:{lines}"


class DataError(TpspruneError):
    """Data is missing, empty, cut short or does not fit the task."""


class ModelError(TpspruneError):
    """A model does not build, or its output does not fit the data."""


class DeviceError(TpspruneError):
    """The device requested is not on this machine."""


class VariantError(TpspruneError):
    """A TPS variant does not fit the model or the task; the message names those that would."""


class DivergedError(TpspruneError):
    """Training left the finite numbers; the message names the step and what was not finite."""


class PruneError(TpspruneError):
    """Pruning was refused; the model is unchanged."""


class MeterError(TpspruneError):
    """Energy cannot be measured as the recipe asks."""


class LoopError(TpspruneError):
    """A piece of the Python API was used in a way, or at a moment, in which it cannot be."""


class PeersError(TpspruneError):
    """The processes of one run cannot work together: different starts, uneven shares, or one has a fault."""


class WorkerError(TpspruneError):
    """The workers of a cluster cannot be reached, do not fit, or end with what they are given."""


class RunFolderError(TpspruneError):
    """A run folder is in use, or does not hold what it should."""


class CannotWriteError(RunFolderError):
    """Something cannot be written: no space, no permission, a read-only place; nothing is half written."""


class ArtifactError(TpspruneError):
    """An exported file is damaged, foreign, or does not fit the model it should fill."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest of ``names``, or an empty string.

    >>> did_you_mean("learning_rte", ["learning_rate", "epochs"])
    " (did you mean 'learning_rate'?)"
    >>> did_you_mean("zzz", ["learning_rate", "epochs"])
    ''
    """
    near = get_close_matches(name[:100], list(islice(names, 1000)), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


def first_line(error: BaseException) -> str:
    """Return the kind of an exception and the first line of its message.

    >>> first_line(ValueError("no such key"))
    'ValueError: no such key'
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
