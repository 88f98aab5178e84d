"""From the recipe's ``[tps]`` to a regulariser, or to words that say why not and what would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, Literal

from torch import Tensor, nn

from tpsprune.errors import VariantError
from tpsprune.numerics.trees import Tree, at
from tpsprune.recipe.train import Tps
from tpsprune.records import TaskFacts
from tpsprune.tps.base import PhaseVariant, Variant
from tpsprune.tps.bn_l1 import BatchNormL1
from tpsprune.tps.fourier import Fourier
from tpsprune.tps.labels import Labels
from tpsprune.tps.moments import Moments
from tpsprune.tps.neurons import Neurons
from tpsprune.tps.regulariser import Regulariser
from tpsprune.tps.weights import Weights

__all__ = ["build"]

PROBE_ITEMS: Final = 1024

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
    probe: tuple[Tree, Tensor] | None = None,
) -> Regulariser | None:
    """Return the regulariser that ``settings`` ask for, on the model as it is now; ``None`` for none of it.

    Build again after a cut: the old one holds the weights of the model before it. ``train_inputs`` are the
    stored inputs, for ``fourier`` and ``labels`` the token pairs (n, 2); ``probe`` are inputs ready for
    the model and their labels, on which ``moments`` reads its order parameters (without it, the first
    training items as they are stored). Cheap, but for one eigendecomposition per layer with ``neurons``.

    Raises:
        VariantError: the variant does not fit the task or the model; the message names those that do.
            Or a layer that ``settings`` name is not there.
    """
    if settings.variant == "auto":
        settings = replace(settings, variant=_best(model, facts))
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
    if probe is None:
        few = slice(0, PROBE_ITEMS)
        probe = at(train_inputs, few), train_labels[few]
    variant = _variant(settings, model, facts, train_inputs, train_labels, probe)
    in_loss = settings.apply == "loss" or not has_phases
    return Regulariser(variant, settings, in_loss=in_loss, total_steps=total_steps, classes=facts.classes)


def _best(model: nn.Module, facts: TaskFacts) -> Literal["labels", "none"]:
    """Return what the studies found fastest: ``labels`` where units alone join two tokens, else none."""
    fits = Labels.missing(model, facts) is None and getattr(model, "triplets_from_weights", False)
    return "labels" if fits else "none"


def _variant(
    settings: Tps,
    model: nn.Module,
    facts: TaskFacts,
    train_inputs: Tree,
    train_labels: Tensor,
    probe: tuple[Tree, Tensor],
) -> Variant:
    match settings.variant:
        case "weights":
            return Weights(model)
        case "neurons":
            return Neurons(model, refresh_steps=settings.refresh_steps)
        case "moments":
            return Moments(model, settings.layers, settings.degree, *probe)
        case "fourier":
            return Fourier(model, facts, train_inputs, train_labels)
        case "bn-l1":
            return BatchNormL1(model)
        case _:
            return Labels(model, facts, train_inputs, train_labels)
