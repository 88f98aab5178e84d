"""What a callback carries along: a TPS and a watch, made once a trainer has model and optimiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import Tensor, nn
from torch.optim import Optimizer

from tpsprune.loop.penalty import TPS
from tpsprune.loop.watch import Watch
from tpsprune.records import Decision

__all__ = ["Aboard", "labels_of"]


def labels_of(batch: Any) -> Any:
    """Return the labels of a batch: those that it names, or its second part."""
    return batch["labels"] if isinstance(batch, Mapping) else batch[1]


@final
class Aboard:
    """``tps`` and ``watch`` are the arguments of ``tpsprune.TPS`` and ``tpsprune.Watch``, without model.

    Either may be missing. A state that is loaded before the start is put back at the start.
    """

    def __init__(
        self, tps: Mapping[str, Any] | None, watch: Mapping[str, Any] | None, stop_on: Sequence[str]
    ) -> None:
        self._tps_given, self._watch_given, self._stop_on = tps, watch, tuple(stop_on)
        self._step = 0
        self._pending: Mapping[str, Any] = {}
        self.tps: TPS | None = None
        self.watch: Watch | None = None
        self.acted: Decision | None = None
        """The verdict that ended training, if one did."""

    def start(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Make what was asked for, with the state of a checkpoint if one was loaded."""
        if self._tps_given is not None:
            self.tps = TPS(model, optimizer, **self._tps_given)
        if self._watch_given is not None:
            self.watch = Watch(model, **self._watch_given)
        for part, name in ((self.tps, "tps"), (self.watch, "watch")):
            if part is not None and name in self._pending:
                part.load_state_dict(self._pending[name])
        self._pending = {}

    def term(self, labels: Tensor | None, loss: Tensor) -> Tensor | float:
        """Return what the loss is to take beside the task's: nought without TPS."""
        return 0.0 if self.tps is None else self.tps(labels, loss.detach())

    def over(self, step: int, epoch: float, values: Mapping[str, float]) -> bool:
        """Let the watch see a step, once; return whether a rule says that training is over."""
        if self.watch is None or step == self._step:
            return False
        self._step = step
        readings = () if self.tps is None or step % self.watch.every_steps else self.tps.order_parameters()
        for verdict in self.watch.step(step, epoch=epoch, readings=readings, **values):
            if verdict.act and verdict.kind in self._stop_on:
                self.acted = verdict
        return self.acted is not None

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both."""
        parts = {"tps": self.tps, "watch": self.watch}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep a state for the start."""
        self._pending = dict(state)

    def close(self) -> None:
        """Take the hooks off, and end the process that counts loops."""
        for part in (self.tps, self.watch):
            if part is not None:
                part.close()
