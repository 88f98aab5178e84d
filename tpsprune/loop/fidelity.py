"""Whether a smaller model still does what the dense one did: one panel of figures, read on the same items."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from tpsprune import pruning
from tpsprune.errors import ModelError, PruneError, first_line
from tpsprune.loop.batches import batches_of
from tpsprune.loop.unwrap import device_of, plain_model
from tpsprune.numerics.forward import fixed_seed, logits_of
from tpsprune.numerics.last_layer import passes
from tpsprune.numerics.neural_collapse import neural_collapse
from tpsprune.numerics.objective import IGNORED
from tpsprune.numerics.paths import POINTS, barrier, state_between
from tpsprune.numerics.predictions import (
    affine_explained,
    agreement,
    calibration_error,
    divergence,
    explained,
    roc_area,
)
from tpsprune.numerics.trees import Tree
from tpsprune.pruning import Extraction, Plan
from tpsprune.records import Fidelity, OneModel

FOREIGN_ITEMS: Final = 512
SAME: Final = 1e-3
"""What the outputs of the ticket at the dense shape may differ by, over their largest."""
NO_CLASSES: Final = "there are no labels that are classes"
Figure: TypeAlias = float | str
"""A figure, or why there is none."""


@torch.inference_mode(False)
def fidelity(
    dense: nn.Module,
    ticket: nn.Module | Extraction,
    data: Tensor | Iterable[Any],
    *,
    labels: Sequence[Tensor] | None = None,
    plan: Plan | None = None,
    foreign: Tensor | Iterable[Any] | None = None,
    split: str = "the data given",
    seed: int = 0,
) -> Fidelity:
    """Read how faithful a ticket is to its dense model: a panel of figures, each with a reason where absent.

    >>> import torch, tpsprune
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> dense = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> inputs = torch.randn(512, 8)
    >>> found = tpsprune.extract(dense, inputs, tpsprune.Macs(0.5), quality="fast")
    >>> labels = dense(inputs).argmax(1)
    >>> panel = tpsprune.fidelity(dense, found, [[inputs, labels]])
    >>> panel.agreement > 0.7, panel.dense.quality, panel.barrier_error < 0.1
    (True, 1.0, True)

    Args:
        dense: the dense model; not changed.
        ticket: the smaller one, or the extraction, which has its plan.
        data: batches as ``tpsprune.extract`` takes them; a *list* is inputs and, last, labels.
        labels: one tensor a batch, where the batches have none. Without labels agreement, divergence,
            calibration, collapse and the barrier are absent: scores of classes are not known to be such.
        plan: of the ticket: the barrier on the line between both models takes it.
        foreign: inputs that are none of the task's. Without any they are made up: noise through random
            networks, of the shapes of the first batch.
        split: what the items are, for the record.
        seed: of the inputs made up.

    Returns:
        A record; ``tpsprune.records.Fidelity`` says what each figure is. Of predictions at every place of a
        sequence each place counts as an item, those that are not labelled left out.

    Raises:
        ModelError: the batches do not fit the models, or a model gives no tensor of outputs.
        PruneError: a model is scripted or quantised.

    It does not see what the figures are for: a ticket may agree with the dense model and be wrong with it.

    Cost: a pass of either model over the data, and eleven of the dense model for the barrier; all outputs and
    last states are held at once.
    """
    begun = time.process_time()
    if isinstance(ticket, Extraction):
        plan = plan or ticket.plan
        ticket = ticket.ticket
    dense, ticket = plain_model(dense), plain_model(ticket)
    device = device_of(dense)
    batches, found = batches_of(data, device, "data", ModelError, dense)
    if not batches:
        raise ModelError("data holds no batch: fidelity is read on a few hundred items")
    given = found if labels is None else [part.to(device) for part in labels]
    first, second = (_observe(model, batches) for model in (dense, ticket))
    if first.outputs_nc.shape != second.outputs_nc.shape:
        shapes = f"{list(second.outputs_nc.shape[1:])}, the dense model's {list(first.outputs_nc.shape[1:])}"
        raise ModelError(f"the ticket's outputs are of shape {shapes}: it is no ticket of this model")
    classes_n = _classes(given, first)
    strangers, kind = _foreign_batches(dense, batches, foreign, seed)
    both = {
        "outputs_explained": _or(explained(second.outputs_nc, first.outputs_nc), "the outputs never vary"),
        "states_explained": _explain_states(first, second),
        **_compare(first, second, classes_n),
        **_read_barrier(dense, ticket, plan, batches, classes_n),
    }
    own = [
        {
            **_judge(seen, classes_n),
            **_read_collapse(seen, classes_n),
            "foreign_roc_area": _tell_apart(model, seen, strangers, kind),
        }
        for model, seen in ((dense, first), (ticket, second))
    ]
    return Fidelity(
        items=first.items,
        split=split,
        dense=OneModel(**_figures(own[0])),
        ticket=OneModel(**_figures(own[1])),
        foreign=kind if strangers else "",
        cpu_seconds=time.process_time() - begun,
        absent={name: each for part in (both, *own) for name, each in part.items() if isinstance(each, str)},
        **_figures(both),
    )


def _or(value: float, otherwise: str) -> float | str:
    """Return a figure, or why it is none where it is not finite."""
    return value if math.isfinite(value) else otherwise


def _figures(read: Mapping[str, Figure]) -> dict[str, Any]:
    return {name: each for name, each in read.items() if not isinstance(each, str)}


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """Outputs of all items, a row a prediction; what the last linear layer read for each.

    ``weight_cd`` is that layer's where its outputs are the model's; ``shape`` that of an item's predictions.
    """

    outputs_nc: Tensor
    states_nd: Tensor | None
    weight_cd: Tensor | None
    shape: tuple[int, ...]
    items: int


def _observe(model: nn.Module, batches: Sequence[Tree]) -> _Seen:
    """Return what a model gives for all batches.

    Raises:
        ModelError: it does not take one, or gives no tensor with numbers for each item.
    """
    try:
        with fixed_seed():
            found = [(logits_of(each.output), each.layer, each.read) for each in passes(model, batches)]
    except Exception as error:  # the model's own code runs here, and may raise anything
        raise ModelError(f"the model does not take a batch of data: {first_line(error)}") from error
    shapes = [output.shape for output, _, _ in found]
    if any(len(shape) < 2 for shape in shapes):
        raise ModelError(f"an output of shape {list(shapes[0])} has no numbers for each item")
    # Half precision is read as single: there is little that counts in it.
    outputs_nc = torch.cat([output.flatten(0, -2).float() for output, _, _ in found])
    states = [
        read.flatten(0, -2).float()
        for output, _, read in found
        if read is not None and read.shape[:-1] == output.shape[:-1]
    ]
    states_nd = torch.cat(states) if len(states) == len(found) else None
    layer = found[-1][1]
    gives = layer is not None and states_nd is not None and len(layer.weight) == outputs_nc.shape[1]
    weight_cd = layer.weight.detach() if layer is not None and gives else None
    return _Seen(outputs_nc, states_nd, weight_cd, tuple(shapes[-1][1:-1]), sum(shape[0] for shape in shapes))


def _scores(model: nn.Module, batches: Sequence[Tree]) -> Tensor:
    return _observe(model, batches).outputs_nc


def _classes(labels: Sequence[Tensor] | None, seen: _Seen) -> Tensor | None:
    """Return the class of each prediction, ``IGNORED`` where it is not labelled; or none."""
    if not labels or any(each.is_floating_point() or each.dtype == torch.bool for each in labels):
        return None
    if any(tuple(each.shape[1:]) != seen.shape for each in labels) or sum(map(len, labels)) != seen.items:
        return None
    return torch.cat([each.flatten() for each in labels])


def _explain_states(first: _Seen, second: _Seen) -> Figure:
    if first.states_nd is None or second.states_nd is None:
        return "no linear layer comes last in both models"
    explained_share = affine_explained(second.states_nd, first.states_nd)
    return _or(explained_share, "half of the items are no more than the numbers of a state")


def _compare(first: _Seen, second: _Seen, classes_n: Tensor | None) -> dict[str, Figure]:
    if classes_n is None:
        return {"agreement": NO_CLASSES, "divergence_nats": NO_CLASSES}
    dense_nc, ticket_nc = (each.outputs_nc[classes_n != IGNORED] for each in (first, second))
    return {
        "agreement": agreement(dense_nc, ticket_nc),
        "divergence_nats": _or(divergence(dense_nc, ticket_nc), "a score is not finite"),
    }


def _judge(seen: _Seen, classes_n: Tensor | None) -> dict[str, Figure]:
    if classes_n is None:
        return {"quality": NO_CLASSES, "calibration_error": NO_CLASSES}
    counted_n = classes_n != IGNORED
    scores_nc, right_n = seen.outputs_nc[counted_n], classes_n[counted_n]
    return {
        "quality": float((scores_nc.argmax(1) == right_n).double().mean()),
        "calibration_error": _or(calibration_error(scores_nc, right_n), "a score is not finite"),
    }


def _read_collapse(seen: _Seen, classes_n: Tensor | None) -> dict[str, Figure]:
    if classes_n is None:
        return {"nc1": NO_CLASSES}
    if seen.states_nd is None:
        return {"nc1": "no linear layer comes last"}
    counted_n = classes_n != IGNORED
    right_n, decided_n = classes_n[counted_n], seen.outputs_nc[counted_n].argmax(1)
    if bool((right_n == right_n[:1]).all()):
        return {"nc1": "all items are of one class"}
    found = neural_collapse(seen.states_nd[counted_n], right_n, decided_n, seen.weight_cd)
    return {
        "nc1": _or(found.nc1, "all classes have the same mean"),
        "nc2_norms": found.nc2_norms,
        "nc2_angles": found.nc2_angles,
        "nc3": "the last linear layer does not give the outputs" if found.nc3 is None else found.nc3,
        "nc4": found.nc4,
    }


def _read_barrier(
    dense: nn.Module,
    ticket: nn.Module,
    plan: Plan | None,
    batches: Sequence[Tree],
    classes_n: Tensor | None,
) -> dict[str, Figure]:
    """Read loss and error at equal steps from the dense weights to the ticket's, at the dense shape."""
    if classes_n is None:
        return {"barrier_loss": NO_CLASSES}
    if plan is None:
        return {"barrier_loss": "the plan of the ticket is not known"}
    try:
        whole, walked = pruning.expand(dense, ticket, plan)
    except PruneError as error:
        return {"barrier_loss": str(error)}
    found, wanted = (_scores(model, batches[:1]) for model in (walked, ticket))
    if not bool((found - wanted).abs().amax() <= SAME * wanted.abs().amax()):
        return {"barrier_loss": "a norm runs over pruned units: the ticket has no place in the dense shape"}
    start, end = (
        {name: tensor.clone() for name, tensor in model.state_dict().items()} for model in (whole, walked)
    )
    counted_n = classes_n != IGNORED
    losses, errors = [], []
    for point in range(POINTS):
        walked.load_state_dict(state_between(start, end, point / (POINTS - 1)))
        scores_nc = _scores(walked, batches)[counted_n]
        losses.append(float(functional.cross_entropy(scores_nc.float(), classes_n[counted_n])))
        errors.append(float((scores_nc.argmax(1) != classes_n[counted_n]).double().mean()))
    return {
        "barrier_loss": _or(barrier(losses), "a loss on the way is not finite"),
        "barrier_error": barrier(errors),
    }


def _foreign_batches(
    dense: nn.Module, batches: Sequence[Tree], foreign: Tensor | Iterable[Any] | None, seed: int
) -> tuple[Sequence[Tree], str]:
    """Return inputs that are none of the task's and what they are; or none, and why."""
    if foreign is not None:
        return batches_of(foreign, device_of(dense), "foreign", ModelError, dense)[0], "inputs given"
    try:
        made = pruning.synthesize(dense, batches[0], FOREIGN_ITEMS, seed=seed, steps=0)
    except PruneError as error:
        return (), str(error)
    return made.batches, "noise through random networks"


def _tell_apart(model: nn.Module, seen: _Seen, strangers: Sequence[Tree], reason: str) -> Figure:
    """Return how well the largest output of an item tells the task's inputs from foreign ones."""
    if not strangers:
        return reason
    return roc_area(seen.outputs_nc.amax(1), _scores(model, strangers).amax(1))
