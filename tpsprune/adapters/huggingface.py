"""For Hugging Face's ``Trainer``: a callback that watches, and a loss that takes the term of TPS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from math import nan
from pathlib import Path
from typing import Any, final

from torch import nn
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from tpsprune.adapters.parts import CallbackParts, load_state, save_state


@final
class TpspruneCallback(TrainerCallback):
    """Makes TPS and a watch when training begins, and ends it where a rule acts.

    What is decoupled (``weights``, ``neurons``) acts with any trainer; what is in the loss needs
    ``PenalisedTrainer``, or ``Penalised`` before another trainer's class. Arguments as in the callback for
    Lightning; ``values`` name metrics of an evaluation, as ``{"validation_accuracy": "eval_accuracy"}``. Of
    several processes all get the verdict of the first one, so that all end training at the same step.

    Their state is kept as ``tpsprune.safetensors`` in each of the trainer's checkpoints, and taken from there
    where training resumes from one. A trainer does not name the one it resumes from: that of the same step
    in its ``output_dir`` is tried. Another is loaded beforehand, as
    ``callback.parts.load_state_dict(tpsprune.adapters.parts.load_state(folder))``.

    Raises:
        ArtifactError: training resumes from a checkpoint without such a file, and no state was loaded.
    """

    def __init__(
        self,
        *,
        tps: Mapping[str, Any] | None = None,
        watch: Mapping[str, Any] | None = None,
        stop_on: Sequence[str] = ("draw", "stop"),
        values: Mapping[str, str] | None = None,
    ) -> None:
        self.parts = CallbackParts(tps, watch, stop_on)
        self._values = dict(values or {})
        self._metrics: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make TPS and watch: model and optimiser are there now, and a checkpoint's state if there is one."""
        if state.global_step and self.parts.lacks_state:
            self.parts.load_state_dict(load_state(_folder(args, state)))
        # Evaluations before the checkpoint, which a reading soon after it needs.
        history = (item for logged in state.log_history for item in logged.items())
        self._metrics = {name: value for name, value in history if name.startswith("eval_")}
        # The model comes without its wrapper.
        self.parts.start(kwargs["model"], kwargs["optimizer"], replicated=args.world_size > 1)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the metrics for the next reading."""
        self._metrics |= kwargs["metrics"]

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the state beside the checkpoint just written, where this process writes any."""
        # A search keeps its checkpoints elsewhere, and resumes from none.
        if args.should_save and not state.is_hyper_param_search and (kept := self.parts.state_dict()):
            save_state(_folder(args, state), kept)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read if the step is due, and end training where a rule acts."""
        values = {name: float(self._metrics.get(of, nan)) for name, of in self._values.items()}
        if self.parts.is_over(state.global_step, float(state.epoch or 0.0), values):
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the hooks off."""
        self.parts.close()


class Penalised:
    """Put before a trainer's class: its loss takes the term of its ``TpspruneCallback``."""

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """Return the trainer's loss and, in training, the term beside it; divided as the trainer divides."""
        carried = (getattr(each, "parts", None) for each in self.callback_handler.callbacks)  # type: ignore[attr-defined]
        held = next((each for each in carried if isinstance(each, CallbackParts)), None)
        tps = held.tps if held is not None and model.training else None
        labels = inputs.get("labels")
        with nullcontext() if tps is None else tps.listening():
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)  # type: ignore[misc]
        if held is not None and tps is not None:
            by_items = self.model_accepts_loss_kwargs and kwargs.get("num_items_in_batch") is not None  # type: ignore[attr-defined]
            parts = self.current_gradient_accumulation_steps if by_items else 1  # type: ignore[attr-defined]
            loss = loss + held.term(labels if tps.needs_labels else None, loss * parts) / parts
        return (loss, outputs) if return_outputs else loss


class PenalisedTrainer(Penalised, Trainer):
    """The trainer, with the term of TPS in its loss."""


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or "", f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
