"""A variant with its coupling: what training adds to the loss, or does after the optimiser's step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from math import log
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from tpsprune.errors import RunFolderError, VariantError
from tpsprune.numerics.trees import Tree, at
from tpsprune.recipe.train import Tps
from tpsprune.records import Reading, TaskFacts
from tpsprune.tps.moments import Moments
from tpsprune.tps.phases import Neurons, PhaseVariant, Weights
from tpsprune.tps.triplets import Fourier, Labels
from tpsprune.tps.variant import BatchNormL1, Group, Variant

CALIBRATION_ITEMS: Final = 1024

_KINDS: Final[Mapping[str, type[Variant]]] = {
    kind.name: kind for kind in (Weights, Neurons, Moments, Fourier, Labels, BatchNormL1)
}


def build(
    settings: Tps,
    model: nn.Module,
    facts: TaskFacts,
    *,
    train_inputs: Tree,
    train_labels: Tensor,
    total_steps: int,
    calibration: tuple[Tree, Tensor] | None = None,
) -> Regulariser | None:
    """Return the regulariser of ``settings`` on the model as it is now, or ``None`` where they name none.

    Build again after pruning: the old one holds the weights of the model before it. ``train_inputs`` are the
    stored inputs, for ``fourier`` and ``labels`` the token pairs (n, 2); ``calibration`` are inputs ready for
    the model and their labels, on which ``moments`` reads its order parameters (without it, the first
    training items as they are stored). Cheap, but for one eigendecomposition per layer with ``neurons``.

    Raises:
        VariantError: the variant does not fit the task or the model; the message names those that do.
            Or a layer that ``settings`` name does not exist.
    """
    if settings.variant == "auto":
        # What the studies found fastest: ``labels`` where units alone join two tokens, else none.
        fits = Labels.missing(model, facts) is None and getattr(model, "triplets_from_weights", False)
        settings = replace(settings, variant="labels" if fits else "none")
    if settings.variant == "none" or settings.coupling == 0.0:
        return None
    kind = _KINDS[settings.variant]
    missing = kind.missing(model, facts)
    if missing is not None:
        fitting = [name for name, other in _KINDS.items() if other.missing(model, facts) is None] or ["none"]
        raise VariantError(f"'{kind.name}' needs {kind.needs}; {missing}. What fits: {', '.join(fitting)}.")
    has_phases = issubclass(kind, PhaseVariant)
    if settings.apply == "decoupled" and not has_phases:
        raise VariantError(
            f"tps.apply = 'decoupled' does not fit '{kind.name}', which has no phases of its own to move."
            " What fits: auto, loss."
        )
    if calibration is None:
        few = slice(0, CALIBRATION_ITEMS)
        calibration = at(train_inputs, few), train_labels[few]
    variant = _variant(settings, model, facts, train_inputs, train_labels, calibration)
    in_loss = settings.apply == "loss" or not has_phases
    return Regulariser(variant, settings, in_loss=in_loss, total_steps=total_steps, classes=facts.classes)


def _variant(
    settings: Tps,
    model: nn.Module,
    facts: TaskFacts,
    train_inputs: Tree,
    train_labels: Tensor,
    calibration: tuple[Tree, Tensor],
) -> Variant:
    match settings.variant:
        case "weights":
            return Weights(model)
        case "neurons":
            return Neurons(model, refresh_steps=settings.refresh_steps)
        case "moments":
            return Moments(model, settings.layers, settings.degree, *calibration)
        case "fourier":
            return Fourier(model, facts, train_inputs, train_labels)
        case "bn-l1":
            return BatchNormL1(model)
        case _:
            return Labels(model, facts, train_inputs, train_labels)


@final
class Regulariser:
    """Triadic phase synchronisation as a training loop uses it; our instantiation of an unpublished formula.

    Either ``penalty`` joins the loss or ``move`` follows the optimiser's step, never both: the other one does
    nothing. ``step`` is that of the stage's schedule: a regulariser built again on a pruned model continues
    where the old one was if the schedule does, and warms up again where the schedule restarts.
    """

    def __init__(
        self, variant: Variant, settings: Tps, *, in_loss: bool, total_steps: int, classes: int
    ) -> None:
        self.variant_name = variant.name
        self.in_loss = in_loss
        self._variant = variant
        self._coupling = settings.coupling
        self.schedule: Callable[[int], float] | None = None
        """λ by step, in the place of the settings' own and its warm-up."""
        self._warmup_steps = settings.warmup_share * total_steps
        self._chance_loss = log(classes) if variant.fades else None
        self._scaled = settings.scaling == "sqrt-n"
        self._weights = tuple(group.oscillators**-0.5 if self._scaled else 1.0 for group in variant.groups)

    def coupling(self, step: int) -> float:
        """Return λ at ``step``: linear from 0 at step 0 to all of it after ``warmup_share`` of all steps."""
        if self.schedule is not None:
            return self.schedule(step)
        if step >= self._warmup_steps:
            return self._coupling
        return self._coupling * step / self._warmup_steps

    @property
    def groups(self) -> tuple[Group, ...]:
        """What is coupled: the name of each group and how many oscillators it has."""
        return self._variant.groups

    @property
    def shares_forward_pass(self) -> bool:
        """Whether the penalty is of a forward pass within ``listening``: one backward pass for both."""
        return self._variant.shares_forward_pass

    def listening(self) -> AbstractContextManager[None]:
        """Return a context for the forward pass of a training step, which ``penalty`` may be about."""
        return self._variant.listening()

    def attach(self) -> None:
        """Add hooks to the model until ``detach``; see ``Variant.attach``."""
        self._variant.attach()

    def detach(self) -> None:
        """Leave the model as it was before ``attach``."""
        self._variant.detach()

    @property
    def moves(self) -> tuple[nn.Parameter, ...]:
        """The parameters that ``move`` moves, one a group; none where the penalty is in the loss."""
        return self._variant.weights if isinstance(self._variant, PhaseVariant) and not self.in_loss else ()

    def penalty(
        self, step: int, label_i: Tensor | None = None, task_loss: Tensor | None = None
    ) -> Tensor | None:
        """Return λ · mean over groups of E, each times N^(−1/2) with ``sqrt-n``, or ``None``.

        Add it to the task loss before the backward pass; ``label_i`` are the labels of the batch, and
        ``task_loss`` its loss: a variant that ``fades`` is multiplied by min(1, loss / ln classes), what is
        left to learn, held fixed. Computed in float32 at least, under autocast too.
        """
        coupling = self.coupling(step)
        if not self.in_loss or coupling == 0.0:
            return None
        self._variant.refresh(step)
        energy_g = self._variant.energies(label_i)
        if self._scaled:
            energy_g = energy_g * energy_g.new_tensor(self._weights)
        term = coupling * energy_g.mean()
        if self._chance_loss is not None and task_loss is not None:
            term = term * (task_loss.detach() / self._chance_loss).clamp(max=1.0)
        return term

    def move(self, step: int, learning_rate: float | Sequence[float]) -> None:
        """Move each phase by learning rate · λ · F, times N^(−1/2) with ``sqrt-n``, as AdamW decouples decay.

        Call it after ``optimizer.step()``, with one learning rate for all or one for each of ``moves``. Does
        nothing where the penalty is in the loss.
        """
        coupling = self.coupling(step)
        if not isinstance(self._variant, PhaseVariant) or self.in_loss or coupling == 0.0:
            return
        self._variant.refresh(step)
        rates = learning_rate
        if isinstance(rates, int | float):
            rates = [rates] * len(self._weights)
        self._variant.move(
            [rate * coupling * weight for rate, weight in zip(rates, self._weights, strict=True)]
        )

    def order_parameters(self, *, step: int, epoch: float) -> tuple[Reading, ...]:
        """Return energy, and |z₁|, |z₂| or the coherence, by group and (group empty) as a mean over groups.

        Signals: ``tps_energy``; ``tps_z1`` and ``tps_z2`` for ``weights`` and ``neurons``;
        ``tps_coherence`` for ``moments``, ``fourier`` and ``labels``. All without a unit. One transfer from
        the device for all of them.
        """
        values_by_signal = self._variant.readings()
        table = torch.stack(list(values_by_signal.values()))
        rows = torch.cat([table, table.mean(1, keepdim=True)], 1).tolist()
        names = [*(group.name for group in self._variant.groups), ""]
        return tuple(
            Reading.of(signal, value, step=step, epoch=epoch, group=name)
            for signal, row in zip(values_by_signal, rows, strict=True)
            for place, (name, value) in enumerate(zip(names, row, strict=True))
            if name or place == len(names) - 1
        )

    def harm_note(self, coherences: Sequence[float], losses: Sequence[float]) -> str | None:
        """Return a warning where these readings, or the training data, indicate that the variant does harm.

        Only ``fourier`` ever has one: no other variant rests on the order of tokens.
        """
        return self._variant.harm_note(coherences, losses)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON values that a checkpoint must hold; λ follows from the step alone."""
        return self._variant.state(), {"variant": self.variant_name}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Restore what ``state`` returned.

        Raises:
            RunFolderError: the checkpoint is of another variant, or of other layers.
        """
        theirs, ours = (
            _shape(values.get("variant"), tensors),
            _shape(self.variant_name, self._variant.state()),
        )
        if theirs != ours:
            raise RunFolderError(f"tps: the checkpoint holds {theirs}, where this run needs {ours}")
        self._variant.load_state(tensors)


def _shape(variant: object, tensors: Mapping[str, Tensor]) -> str:
    """Describe what a state consists of."""
    sizes = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in sorted(tensors))
    return f"variant {variant!r} with {sizes or 'no tensors'}"
