"""What a callback carries along: a TPS and a watch, made once a trainer has model and optimiser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

from torch import Tensor, nn
from torch.optim import Optimizer

from tpsprune.loop.penalty import TPS
from tpsprune.loop.watch import Watch
from tpsprune.records import Decision, Reading

__all__ = ["Aboard", "labels_of"]


def labels_of(batch: Any) -> Any:
    """Return the labels of a batch: those that it names, or its second part."""
    return batch["labels"] if isinstance(batch, Mapping) else batch[1]


@final
class Aboard:
    """``tps`` and ``watch`` are the arguments of ``tpsprune.TPS`` and ``tpsprune.Watch``, without model.

    Either may be missing. A state that is loaded before a start is put back at that start, once; what it does
    not hold starts afresh. A second start, for a second training, is as the first.
    """

    def __init__(
        self, tps: Mapping[str, Any] | None, watch: Mapping[str, Any] | None, stop_on: Sequence[str]
    ) -> None:
        self._tps_given, self._watch_given, self._stop_on = tps, watch, tuple(stop_on)
        self._pending: Mapping[str, Any] | None = None
        self.tps: TPS | None = None
        self.watch: Watch | None = None
        self.acted: Decision | None = None
        """The verdict that ended training, if one did."""

    def start(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Make what was asked for, with the state of a checkpoint if one was loaded."""
        self.close()  # a training that broke off left its hooks
        self.tps = self.watch = self.acted = None
        if self._tps_given is not None:
            self.tps = TPS(model, optimizer, **self._tps_given)
        if self._watch_given is not None:
            self.watch = Watch(model, **self._watch_given)
        for part, name in ((self.tps, "tps"), (self.watch, "watch")):
            if part is not None and self._pending is not None and name in self._pending:
                part.load_state_dict(self._pending[name])
        self._pending = None

    def term(self, labels: Tensor | None, loss: Tensor) -> Tensor | float:
        """Return what the loss is to take beside the task's: nought without TPS."""
        return 0.0 if self.tps is None else self.tps(labels, loss.detach())

    def over(self, step: int, epoch: float, values: Mapping[str, float]) -> bool:
        """Let the watch see a step; return whether a rule says that training is over.

        Step 0 is passed over: whether a trainer names it hangs on whether it accumulates gradients.
        """
        if self.watch is None or step == 0:
            return False
        for verdict in self.watch.step(step, epoch=epoch, readings=self._order(epoch), **values):
            if verdict.act and verdict.kind in self._stop_on:
                self.acted = verdict
        return self.acted is not None

    @property
    def lacks_state(self) -> bool:
        """Whether there is something to put a state into, and none was loaded."""
        return self._pending is None and (self._tps_given is not None or self._watch_given is not None)

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

    def _order(self, epoch: float) -> Iterator[Reading]:
        """Yield what TPS says of its phases: nothing is computed unless the watch asks."""
        if self.tps is not None:
            yield from self.tps.order_parameters(epoch=epoch)
