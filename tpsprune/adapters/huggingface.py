"""For Hugging Face's ``Trainer``: a callback that watches, and a loss that takes the term of TPS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from math import nan
from typing import Any, final

from torch import nn
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from tpsprune.adapters.aboard import Aboard

__all__ = ["Penalised", "PenalisedTrainer", "TpspruneCallback"]


@final
class TpspruneCallback(TrainerCallback):
    """Makes TPS and a watch when training begins, and ends it where a rule says so.

    What is decoupled (``weights``, ``neurons``) acts with any trainer; what is in the loss needs
    ``PenalisedTrainer``, or ``Penalised`` before another trainer's class. Arguments as in the callback for
    Lightning; ``values`` name metrics of an evaluation, as ``{"validation_accuracy": "eval_accuracy"}``.
    """

    def __init__(
        self,
        *,
        tps: Mapping[str, Any] | None = None,
        watch: Mapping[str, Any] | None = None,
        stop_on: Sequence[str] = ("draw", "stop"),
        values: Mapping[str, str] | None = None,
    ) -> None:
        self.aboard = Aboard(tps, watch, stop_on)
        self._values = dict(values or {})
        self._metrics: Mapping[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Make TPS and watch: model and optimiser are there now."""
        self.aboard.start(given["model"], given["optimizer"])

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Keep the metrics for the next reading."""
        self._metrics = given["metrics"]

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Read where it is the turn, and end training where a rule says so."""
        values = {name: float(self._metrics.get(of, nan)) for name, of in self._values.items()}
        if self.aboard.over(state.global_step, float(state.epoch or 0.0), values):
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Take the hooks off."""
        self.aboard.close()


class Penalised:
    """Put before a trainer's class: its loss takes the term of its ``TpspruneCallback``."""

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **given: Any) -> Any:
        """Return the trainer's loss and, in training, the term beside it; divided as the trainer divides."""
        ours = (each for each in self.callback_handler.callbacks if isinstance(each, TpspruneCallback))  # type: ignore[attr-defined]
        aboard = next((each.aboard for each in ours), None)
        tps = aboard.tps if aboard is not None and model.training else None
        labels = inputs.get("labels")
        with nullcontext() if tps is None else tps.listening():
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **given)  # type: ignore[misc]
        if aboard is not None and tps is not None:
            by_items = self.model_accepts_loss_kwargs and given.get("num_items_in_batch") is not None  # type: ignore[attr-defined]
            parts = self.current_gradient_accumulation_steps if by_items else 1  # type: ignore[attr-defined]
            loss = loss + aboard.term(labels if tps.needs_labels else None, loss * parts) / parts
        return (loss, outputs) if return_outputs else loss


class PenalisedTrainer(Penalised, Trainer):
    """The trainer, with the term of TPS in its loss."""
