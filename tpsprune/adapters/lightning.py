"""A callback for Lightning: TPS joins the loss, a watch reads, and a rule that acts ends the fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from math import isfinite, nan
from typing import Any, final

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from tpsprune.adapters.parts import CallbackParts, labels_of
from tpsprune.loop.unwrap import replicas_of


@final
class TpspruneCallback(Callback):
    """Couples the module's phases and watches it; the module needs a ``forward`` and nothing more.

    The term joins the loss just before its backward pass, in place, so that one pass serves both, under
    ``DistributedDataParallel``, accumulation and precision plugins alike. A loss whose own graph needs its
    value (a root, say) cannot be added to in place: torch raises. Of several processes all get the verdict of
    the first one, so that all end the fit at the same step.

    Args:
        tps: arguments of ``tpsprune.TPS`` but model and optimiser, as ``{"variant": "weights"}``.
        watch: arguments of ``tpsprune.Watch`` but the model, as ``{"calibration_data": x, "draw":
            tpsprune.Plateau()}``.
        stop_on: the verdicts that end the fit.
        values: what a rule may read besides signals: its name there, and that under which it is logged.
        labels: takes the labels out of a batch; for ``moments`` alone.
    """

    def __init__(
        self,
        *,
        tps: Mapping[str, Any] | None = None,
        watch: Mapping[str, Any] | None = None,
        stop_on: Sequence[str] = ("draw", "stop"),
        values: Mapping[str, str] | None = None,
        labels: Callable[[Any], Tensor] = labels_of,
    ) -> None:
        super().__init__()
        self.parts = CallbackParts(tps, watch, stop_on)
        self._values = dict(values or {})
        self._labels = labels
        self._batch: Any = None
        self._listening = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make TPS and watch: the optimiser is there now, and the wrapper that says who else trains."""
        wrapper = trainer.strategy.model
        replicated = wrapper is not None and replicas_of(wrapper) is not None
        self.parts.start(pl_module, trainer.optimizers[0], replicated=replicated)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, _: int) -> None:
        """Listen to the forward pass that comes."""
        self._batch = batch
        if self.parts.tps is not None:
            self._listening.enter_context(self.parts.tps.listening())

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Add the term to the loss, which is divided and scaled already."""
        self._listening.close()
        tps = self.parts.tps
        if tps is None:
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        share = (1.0 if scaler is None else scaler.get_scale()) / trainer.accumulate_grad_batches
        labels = self._labels(self._batch) if tps.needs_labels else None
        loss.add_(share * self.parts.term(labels, loss / share))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read if the step is due, and end the fit where a rule acts."""
        batches = float(trainer.num_training_batches)
        part = (batch_idx + 1) / batches if isfinite(batches) else 0.0
        logged = trainer.callback_metrics
        values = {name: float(logged.get(of, nan)) for name, of in self._values.items()}
        if self.parts.is_over(trainer.global_step, trainer.current_epoch + part, values):
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the hooks off."""
        self.parts.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the hooks off."""
        self._listening.close()
        self.parts.close()

    def state_dict(self) -> dict[str, Any]:
        """Return what the trainer's checkpoint is to hold."""
        return self.parts.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what a checkpoint held."""
        self.parts.load_state_dict(state_dict)
