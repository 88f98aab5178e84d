"""The loss of Hugging Face's ``Trainer``, with the term of TPS in it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from torch import nn
from transformers import Trainer

from tpsprune.adapters.aboard import Aboard

__all__ = ["Penalised", "PenalisedTrainer"]


class Penalised:
    """Put before a trainer's class: its loss takes the term of its ``TpspruneCallback``."""

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **given: Any) -> Any:
        """Return the trainer's loss and, in training, the term beside it; divided as the trainer divides."""
        carried = (getattr(each, "aboard", None) for each in self.callback_handler.callbacks)  # type: ignore[attr-defined]
        aboard = next((each for each in carried if isinstance(each, Aboard)), None)
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
