"""The parts of a callback: a TPS and a watch, made once a trainer has model and optimiser, and their state.

The state lies beside a trainer's checkpoint: one file of tensors and JSON, no pickle.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, final

from torch import Tensor, nn
from torch.optim import Optimizer

from tpsprune.errors import ArtifactError
from tpsprune.loop.penalty import TPS
from tpsprune.loop.watch import Watch
from tpsprune.records import Decision, Reading, load
from tpsprune.runs import strict_json
from tpsprune.runs.tensors import load_tensors, save_tensors

FILE: Final = "tpsprune.safetensors"


def labels_of(batch: Any) -> Any:
    """Return the labels of a batch: those that it names, or its second part."""
    return batch["labels"] if isinstance(batch, Mapping) else batch[1]


@final
class CallbackParts:
    """``tps`` and ``watch`` are the arguments of ``tpsprune.TPS`` and ``tpsprune.Watch``, without model.

    Either may be missing. A state that is loaded before a start is restored at that start, once; what it does
    not hold starts afresh. A second start, for a second training, is as the first.
    """

    def __init__(
        self, tps: Mapping[str, Any] | None, watch: Mapping[str, Any] | None, stop_on: Sequence[str]
    ) -> None:
        self._tps_arguments, self._watch_arguments, self._stop_on = tps, watch, tuple(stop_on)
        self._pending: Mapping[str, Any] | None = None
        self.tps: TPS | None = None
        self.watch: Watch | None = None
        self.acted: Decision | None = None
        """The verdict that ended training, if one did."""

    def start(self, model: nn.Module, optimizer: Optimizer, *, replicated: bool | None = None) -> None:
        """Make what is configured, with the state of a checkpoint if one was loaded.

        ``replicated``: as ``Watch`` has it, for a model that comes without its wrapper.
        """
        self.close()  # a training that broke off left its hooks
        self.tps = self.watch = self.acted = None
        if self._tps_arguments is not None:
            self.tps = TPS(model, optimizer, **self._tps_arguments)
        if self._watch_arguments is not None:
            self.watch = Watch(model, **{"replicated": replicated, **self._watch_arguments})
        for part, name in ((self.tps, "tps"), (self.watch, "watch")):
            if part is not None and self._pending is not None and name in self._pending:
                part.load_state_dict(self._pending[name])
        self._pending = None

    def term(self, labels: Tensor | None, loss: Tensor) -> Tensor | float:
        """Return the term to add to the task's loss: zero without TPS."""
        return 0.0 if self.tps is None else self.tps(labels, loss.detach())

    def is_over(self, step: int, epoch: float, values: Mapping[str, float]) -> bool:
        """Read a step; return whether a rule ends training.

        Step 0 is skipped: whether a trainer names it depends on whether it accumulates gradients.
        """
        if self.watch is None or step == 0:
            return False
        for verdict in self.watch.step(step, epoch=epoch, readings=self._order_parameters(epoch), **values):
            if verdict.act and verdict.kind in self._stop_on:
                self.acted = verdict
        return self.acted is not None

    @property
    def lacks_state(self) -> bool:
        """Whether there is a part that has a state, and none was loaded."""
        return self._pending is None and (
            self._tps_arguments is not None or self._watch_arguments is not None
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both."""
        parts = {"tps": self.tps, "watch": self.watch}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep a state for the start; an empty one lets both start afresh."""
        self._pending = dict(state)

    def close(self) -> None:
        """Take the hooks off, and end the process that counts loops."""
        for part in (self.tps, self.watch):
            if part is not None:
                part.close()

    def _order_parameters(self, epoch: float) -> Iterator[Reading]:
        """Yield the order parameters of TPS: nothing is computed unless the watch reads."""
        if self.tps is not None:
            yield from self.tps.order_parameters(epoch=epoch)


def save_state(folder: Path, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Write what ``CallbackParts.state_dict`` returned into a folder, whole or not at all.

    Raises:
        RunFolderError: it cannot be written.
    """
    tensors = {
        f"{part}:{name}": tensor for part, own in state.items() for name, tensor in own["tensors"].items()
    }
    values = {
        part: {name: value for name, value in own.items() if name != "tensors"} for part, own in state.items()
    }
    save_tensors(folder / FILE, tensors, {"state": json.dumps(values)})


def load_state(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what ``save_state`` wrote into a folder, tensors on the CPU.

    Raises:
        ArtifactError: it is not there, damaged, or another file of that name.
    """
    path = folder / FILE
    if not path.exists():
        raise ArtifactError(
            f"{path}, the state of TPS and Watch, is not there; use a checkpoint written with"
            " the callback, or call callback.parts.load_state_dict({}) beforehand to start both afresh"
        )
    tensors, metadata = load_tensors(path)
    try:
        values = load(dict[str, dict[str, Any]], strict_json(metadata.get("state", "").encode()))
    except ValueError as error:
        raise ArtifactError(
            f"{path} is no state of TPS and Watch: use what the trainer's callback wrote"
        ) from error
    return {
        part: {
            **own,
            "tensors": {
                name.removeprefix(f"{part}:"): tensor
                for name, tensor in tensors.items()
                if name.startswith(f"{part}:")
            },
        }
        for part, own in values.items()
    }
