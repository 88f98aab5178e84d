"""``TPS``: triadic phase synchronisation in a user's training loop."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Final, Literal, Self, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tpsprune.errors import Fault, LoopError, RecipeError, VariantError
from tpsprune.loop.unwrap import check_settings, check_state, device_of, unwrap_model, unwrap_optimizer
from tpsprune.numerics.forward import call_model, evaluation_mode, logits_of
from tpsprune.recipe.schema import tps_faults
from tpsprune.recipe.settings import read_section, relocate
from tpsprune.recipe.train import Tps
from tpsprune.records import Reading, TaskFacts
from tpsprune.tps import Regulariser, build

SCHEMA: Final = "tpsprune.tps/2"
NEEDS_DATA: Final = {
    "moments": "a few hundred training items as the model takes them, to find its layers and read order on",
    "fourier": "the training pairs of tokens (n, 2) and their labels",
    "labels": "the training pairs of tokens (n, 2) and their labels",
}
FEW: Final = 2
INTEGERS: Final = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})


@final
class TPS:
    """A term of the loss, or a motion after each step, that lets triads of phases agree. Our instantiation.

    Whatever the variant, one loop serves: forward pass within ``listening()``, ``tps(labels, loss)`` added to
    the loss, and nothing else. What is decoupled from the loss (``weights`` and ``neurons``, as AdamW
    decouples decay) moves by itself after every ``optimizer.step()``, by the learning rate that its weight
    has then: the optimiser has a hook for it, which also counts the steps.

    >>> import torch, tpsprune
    >>> from torch.nn.functional import cross_entropy
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    >>> x, y = torch.randn(64, 8), torch.arange(64) % 3
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> tps = tpsprune.TPS(model, optimizer, variant="moments", data=(x, y))
    >>> for _ in range(3):
    ...     with tps.listening():
    ...         loss = cross_entropy(model(x), y)
    ...     (loss + tps(y, loss)).backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    >>> tps.steps, sorted({reading.signal for reading in tps.order_parameters()})
    (3, ['tps_coherence', 'tps_energy'])

    Accumulating gradients: add it to the loss of every part, before dividing by their number. What reads
    weights then has the gradient that it has on the whole batch; ``moments`` the mean over parts of what each
    shows by itself, which is not that of the whole. Compiled models, ``DistributedDataParallel``, autocast
    and gradient scalers need nothing more. A term never runs in half precision.

    Args:
        model: what trains; wrapped or not.
        optimizer: what trains it, once it is made.
        variant: ``weights``, ``neurons``, ``moments``, ``fourier``, ``labels``, ``bn-l1`` (a published
            baseline and no TPS), ``none``, or ``auto``: ``labels`` where nothing but hidden units joins two
            tokens, else none, with a warning.
        data: training inputs and labels, as tensors. For ``moments`` a few hundred items, for ``labels`` and
            ``fourier`` every training pair of tokens; for the others nothing.
        coupling: λ, comparable with a weight decay where decoupled, a factor on the term otherwise.
        apply: ``loss`` or ``decoupled``; ``auto`` decouples ``weights`` and ``neurons``.
        scaling: ``sqrt-n`` multiplies λ by N^(−1/2), N the oscillators of a group.
        warmup_steps: steps over which λ rises in a line from zero; a recipe takes a twentieth of its budget.
        refresh_steps: steps between two fittings of the plane of ``neurons``.
        layers: whose units ``moments`` couples, by module name; the first that fits without any.
        degree: how many inputs a triad of ``moments`` has besides the label, 2 or 3.

    Raises:
        RecipeError: a setting is out of bounds; every fault, with its name.
        VariantError: the variant does not fit the model or the data; names those that do. ``fourier`` is
            refused where the training labels do not follow the order of the tokens: it would do harm.
        ModelError: the model is sharded over processes.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        variant: Literal[
            "auto", "none", "weights", "neurons", "moments", "fourier", "labels", "bn-l1"
        ] = "auto",
        *,
        data: tuple[Tensor, Tensor] | None = None,
        coupling: float = 1.0,
        apply: Literal["auto", "decoupled", "loss"] = "auto",
        scaling: Literal["none", "sqrt-n"] = "none",
        warmup_steps: int = 0,
        refresh_steps: int = 50,
        layers: Sequence[str] = (),
        degree: Literal[2, 3] = 2,
    ) -> None:
        settings = _settings(
            warmup_steps,
            variant=variant,
            coupling=coupling,
            apply=apply,
            scaling=scaling,
            refresh_steps=refresh_steps,
            layers=list(layers),
            degree=degree,
        )
        self._optimizer = unwrap_optimizer(optimizer)
        model = unwrap_model(model)
        self._device = device_of(model)
        self._steps = 0
        facts, inputs, labels = _facts_of(model, data, variant)
        self._classes = facts.classes
        with self._precisely():
            self._regulariser = build(
                settings, model, facts, train_inputs=inputs, train_labels=labels, total_steps=warmup_steps
            )
        self._described = _describe(settings, self._regulariser)
        self._refuse_harm()
        if self._regulariser is None and variant == "auto" and coupling > 0:
            warnings.warn(
                "TPS: 'auto' finds nothing that it would couple in this model, and does nothing;"
                " variant = 'weights', 'neurons' or 'moments' acts on it",
                stacklevel=2,
            )
        if self._regulariser is not None:
            self._regulariser.attach()
        self._hook = self._optimizer.register_step_post_hook(self._after_step)

    @property
    def variant(self) -> str:
        """What is coupled: the variant that ``auto`` came to, or ``none``."""
        return "none" if self._regulariser is None else self._regulariser.variant_name

    @property
    def steps(self) -> int:
        """Optimiser steps since this was made, those before a checkpoint it was loaded from included."""
        return self._steps

    @property
    def needs_labels(self) -> bool:
        """Whether the term is made of a forward pass within ``listening()`` and of its labels."""
        return self._regulariser is not None and self._regulariser.shares_forward_pass

    def listening(self) -> AbstractContextManager[None]:
        """Return a context for a training step's forward pass: ``moments`` keeps the outputs of layers."""
        return nullcontext() if self._regulariser is None else self._regulariser.listening()

    def __call__(self, labels: Tensor | None = None, loss: Tensor | None = None) -> Tensor:
        """Return the term to add to the task's loss: a scalar, zero where there is nothing to add.

        ``labels`` are those of the batch just passed forward, ``loss`` its mean loss, which ``moments`` eases
        with; the other variants need neither.

        Raises:
            LoopError: ``moments`` lacks one of them.
            VariantError: a layer has no recorded output, or that of another batch than the labels'; or a
                label is no class (-100, say, which a loss passes over).
        """
        regulariser = self._regulariser
        nothing = torch.zeros((), device=self._device)
        if regulariser is None:
            return nothing
        if self.needs_labels:
            if labels is None or loss is None:
                raise LoopError(
                    f"TPS '{self.variant}' needs the labels of the batch and its loss: tps(labels, loss)"
                )
            labels = _check_labels(labels, self._classes).to(self._device, torch.int64)
        with self._precisely():
            term = regulariser.penalty(self._steps, labels, loss)
        return nothing if term is None else term

    def order_parameters(self, *, epoch: float = 0.0) -> tuple[Reading, ...]:
        """Return energy, and |z₁|, |z₂| or the coherence, of each group and (group empty) over all groups.

        Signals: ``tps_energy``; ``tps_z1`` and ``tps_z2`` of ``weights`` and ``neurons``; ``tps_coherence``
        of the variants with labels. Nothing where there is nothing coupled. ``epoch`` is written into them.
        """
        if self._regulariser is None:
            return ()
        with self._precisely():
            return self._regulariser.order_parameters(step=self._steps, epoch=epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold: numbers, strings and tensors, no pickle."""
        tensors = {} if self._regulariser is None else self._regulariser.state()[0]
        return {
            "schema": SCHEMA,
            "settings": dict(self._described),
            "steps": self._steps,
            "tensors": dict(tensors),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what ``state_dict`` returned, into a ``TPS`` made with the same settings.

        Only ``warmup_steps`` may differ, as where training is extended: λ follows from the steps and the new
        warm-up. Of ``auto`` the variant that it chose is compared, not the setting.

        Raises:
            LoopError: it is no state of a TPS, lacks something, or is of one with another setting or other
                groups: names the first.
            RunFolderError: its tensors are not those of these groups.
        """
        check_state("TPS", state, ("settings", "steps", "tensors"), SCHEMA)
        check_settings("TPS", state["settings"], self._described)
        if self._regulariser is not None:
            self._regulariser.load_state(state["tensors"], {"variant": self.variant})
        self._steps = int(state["steps"])

    def close(self) -> None:
        """Take all hooks off model and optimiser: before a model is pruned, pickled or trained without."""
        self._hook.remove()
        if self._regulariser is not None:
            self._regulariser.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _after_step(self, optimizer: Optimizer, _: Any, __: Any) -> None:
        """Move what is decoupled, unless a gradient scaler had the step left out."""
        left_out = getattr(optimizer, "found_inf", None)
        if left_out is not None and bool(left_out):
            return
        if self._regulariser is not None and self._regulariser.moves:
            rates = {
                id(parameter): float(group["lr"])
                for group in optimizer.param_groups
                for parameter in group["params"]
            }
            with self._precisely():
                self._regulariser.move(
                    self._steps, [rates.get(id(weight), 0.0) for weight in self._regulariser.moves]
                )
        self._steps += 1

    def _refuse_harm(self) -> None:
        """Refuse a variant that would do harm on these data, and weights the optimiser does not train."""
        if self._regulariser is None:
            return
        if note := self._regulariser.harm_note((), ()):
            raise VariantError(note)
        trained = {id(each) for group in self._optimizer.param_groups for each in group["params"]}
        moves = self._regulariser.moves
        if moves and not any(id(weight) in trained for weight in moves):
            raise VariantError(
                f"TPS '{self.variant}' moves weights by their learning rate, and this optimiser trains none"
                " of them; use the optimiser of this model"
            )

    def _precisely(self) -> torch.autocast:
        return torch.autocast(self._device.type, enabled=False)


def _settings(warmup_steps: int, **fields: Any) -> Tps:
    if not isinstance(warmup_steps, int) or warmup_steps < 0:
        raise RecipeError(
            "TPS", [Fault("warmup_steps", f"must be a whole number from 0 (found {warmup_steps!r})")]
        )
    # A share of the steps, and build gets the warm-up as its total.
    settings = read_section(Tps, "tps", {**fields, "warmup_share": 1.0}, "TPS")
    if faults := tps_faults(settings):
        raise RecipeError("TPS", relocate(faults, "tps", ""))
    return settings


def _describe(settings: Tps, regulariser: Regulariser | None) -> dict[str, Any]:
    """Return what must be the same where a state is loaded, by name."""
    if regulariser is None:
        return {"variant": "none"}
    return {
        "variant": regulariser.variant_name,
        "coupling": settings.coupling,
        "apply": "loss" if regulariser.in_loss else "decoupled",
        "scaling": settings.scaling,
        "refresh_steps": settings.refresh_steps,
        "degree": settings.degree,
        **{f"oscillators of '{group.name}'": group.oscillators for group in regulariser.groups},
    }


def _facts_of(model: nn.Module, data: Any, variant: str) -> tuple[TaskFacts, Tensor, Tensor]:
    """Return the facts of a task whose training inputs and labels are ``data``, and both on the device.

    Classes are the model's scores; whole numbers two by two are tokens, in cyclic order where the variant is
    ``fourier``, which assumes one. Without data, for variants that read weights alone, facts
    without content.

    Raises:
        VariantError: the variant needs data, or these do not fit each other or the model.
    """
    if data is None:
        joins = getattr(model, "has_unit_triplets", False) and getattr(model, "triplets_from_weights", False)
        wanted = "labels" if variant == "auto" and joins else variant
        if wanted in NEEDS_DATA:
            subject = f"TPS '{variant}'" + (" is 'labels' on this model, and" if variant == "auto" else "")
            raise VariantError(f"{subject} needs data=(inputs, labels): {NEEDS_DATA[wanted]}")
        return TaskFacts(input_kind="vector", input_shape=(), classes=2), torch.empty(0), torch.empty(0)
    inputs, labels = _checked_data(data, device_of(model))
    classes = _count_scores(model, inputs[:FEW])
    if int(labels.max()) >= classes or classes < 2:
        raise VariantError(
            f"TPS: labels go up to {int(labels.max())} and the model has {classes} scores; expected a"
            " classifier with one score a class"
        )
    if inputs.dtype not in INTEGERS or inputs.ndim != 2:
        kind = TaskFacts(input_kind="vector", input_shape=tuple(inputs.shape[1:]), classes=classes)
        return kind, inputs, labels
    facts = TaskFacts(
        input_kind="tokens",
        input_shape=tuple(inputs.shape[1:]),
        classes=classes,
        vocabulary=_count_tokens(model, inputs),
        cyclic=variant == "fourier",
    )
    return facts, inputs, labels


def _check_labels(labels: Tensor, classes: int) -> Tensor:
    """Return the labels of a batch, which are one class an item.

    Reads every label. On a GPU that waits for the device, as ``moments`` does anyway: it counts classes.

    Raises:
        VariantError: their shape or type is another, or one of them is no class, as the -100 that a loss
            passes over.
    """
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise VariantError(
            f"TPS 'moments' got labels of shape {tuple(labels.shape)} and type"
            f" {str(labels.dtype).removeprefix('torch.')}; use one whole number an item"
        )
    if len(labels):
        low, high = torch.stack(labels.to(torch.int64).aminmax()).tolist()
        if low < 0 or high >= classes:
            raise VariantError(
                f"TPS 'moments' got a label of {low if low < 0 else high}, and classes are from 0 to"
                f" {classes - 1}; use a batch without the items that are of none"
            )
    return labels


def _checked_data(data: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    pair = data if isinstance(data, tuple | list) and len(data) == 2 else ()
    if not pair or not all(isinstance(part, Tensor) for part in pair):
        raise VariantError(
            f"TPS: data is {type(data).__name__}; expected a tensor of inputs and one of labels,"
            " as in data=(x, y)"
        )
    inputs, labels = pair
    if labels.dtype not in INTEGERS or labels.ndim != 1 or len(labels) != len(inputs) or not len(labels):
        raise VariantError(
            f"TPS: data has inputs of shape {tuple(inputs.shape)} and labels of shape"
            f" {tuple(labels.shape)} and type {str(labels.dtype).removeprefix('torch.')}; expected one whole"
            " number an item"
        )
    if int(labels.min()) < 0:
        raise VariantError(f"TPS: data has a label of {int(labels.min())}; use classes from 0")
    return inputs.to(device), labels.to(device, torch.int64)


def _count_scores(model: nn.Module, few: Tensor) -> int:
    try:
        with torch.no_grad(), evaluation_mode(model):
            return int(logits_of(call_model(model, few)).shape[-1])
    except (TypeError, RuntimeError, IndexError) as error:
        raise VariantError(f"TPS: the model does not take the inputs of data: {error}") from error


def _count_tokens(model: nn.Module, tokens_i2: Tensor) -> int:
    """Return the vocabulary: the model's where it has one, else one more than the largest token."""
    if getattr(model, "has_unit_triplets", False) is True and tokens_i2.shape[1] == FEW:
        with torch.no_grad():
            return len(model.unit_triplets(tokens_i2)[0])  # type: ignore[operator]
    return int(tokens_i2.max()) + 1
