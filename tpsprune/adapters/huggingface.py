"""For Hugging Face's ``Trainer``: a callback that watches, and a loss that takes the term of TPS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any, final

from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from tpsprune.adapters.aboard import Aboard
from tpsprune.adapters.beside import load_state, save_state
from tpsprune.adapters.huggingface_loss import Penalised, PenalisedTrainer

__all__ = ["Penalised", "PenalisedTrainer", "TpspruneCallback"]


@final
class TpspruneCallback(TrainerCallback):
    """Makes TPS and a watch when training begins, and ends it where a rule says so.

    What is decoupled (``weights``, ``neurons``) acts with any trainer; what is in the loss needs
    ``PenalisedTrainer``, or ``Penalised`` before another trainer's class. Arguments as in the callback for
    Lightning; ``values`` name metrics of an evaluation, as ``{"validation_accuracy": "eval_accuracy"}``.

    Their state is kept as ``tpsprune.safetensors`` in each of the trainer's checkpoints, and taken from there
    where training goes on from one. A trainer does not say which it goes on from: looked for is that of the
    same step in its ``output_dir``. Another is handed in beforehand, as
    ``callback.aboard.load_state_dict(tpsprune.adapters.beside.load_state(folder))``.

    Raises:
        ArtifactError: training goes on from a checkpoint without such a file, and no state was handed in.
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
        self._metrics: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Make TPS and watch: model and optimiser are there now, and a checkpoint's state if there is one."""
        if state.global_step and self.aboard.lacks_state:
            self.aboard.load_state_dict(load_state(_folder(args, state)))
        # Evaluations before the checkpoint, which a reading soon after it would have looked at.
        history = (item for logged in state.log_history for item in logged.items())
        self._metrics = {name: value for name, value in history if name.startswith("eval_")}
        self.aboard.start(given["model"], given["optimizer"])

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Keep the metrics for the next reading."""
        self._metrics |= given["metrics"]

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Keep the state beside the checkpoint just written, where this process writes any."""
        # A search keeps its checkpoints elsewhere, and goes on from none.
        if args.should_save and not state.is_hyper_param_search and (kept := self.aboard.state_dict()):
            save_state(_folder(args, state), kept)

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


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or "", f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
