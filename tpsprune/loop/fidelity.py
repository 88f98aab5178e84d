"""Whether a smaller model still does what the dense one did: one panel of figures, read on the same items."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from tpsprune import pruning
from tpsprune.errors import ModelError, PruneError, first_line
from tpsprune.loop.batches import batches_of
from tpsprune.loop.unwrap import device_of, plain_model
from tpsprune.numerics.forward import evaluation_mode, fixed_seed, logits_of
from tpsprune.numerics.last_layer import passes
from tpsprune.numerics.latent_field import basins_of, compare_fields, mean_radius
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
from tpsprune.records import Fidelity, LatentField, OneModel

FOREIGN_ITEMS: Final = 512
SAME: Final = 1e-3
"""What the outputs of the ticket at the dense shape may differ by, over their largest."""
FIELD_ITEMS: Final = 512
ATTRACTS: Final = 0.9
"""The spectral radius above which basins move with the smallest change of weights, and are not read."""
NO_AUTOENCODER: Final = "the labels are not the inputs: it is no autoencoder"
NOT_FINITE: Final = "a score is not finite"
NOT_EXPLAINED: Final = "the outputs never vary, or are not finite"
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
    temperature: float = 1.0,
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
        data: batches as ``tpsprune.extract`` takes them; a *list* is inputs and, last, labels. Labels that
            are the inputs themselves, number for number, say that the models are autoencoders: their latent
            field is read then, on at most 512 items, beside one draw of shaken weights.
        labels: one tensor a batch, where the batches have none. Without labels agreement, divergence,
            calibration, collapse and the barrier are absent: scores of classes are not known to be such.
        plan: of the ticket: the barrier on the line between both models takes it.
        foreign: inputs that are none of the task's. Without any they are made up: noise through random
            networks, of the shapes of the first batch.
        temperature: what scores are divided by before the softmax, as in the loss that the model was trained
            with: for divergence, calibration and the barrier.
        split: what the items are, for the record.
        seed: of the inputs made up.

    Returns:
        A record; ``tpsprune.records.Fidelity`` says what each figure is. Of predictions at every place of a
        sequence, or of a map (classes behind the items), each place counts, those that are not labelled left
        out. Where the last linear layer does not give the outputs, states are of the one called last.

    Raises:
        ModelError: the batches do not fit the models, labels do not fit the outputs, or a model gives no
            tensor of outputs.
        PruneError: a model is scripted or quantised.

    It does not see what the figures are for: a ticket may agree with the dense model and be wrong with it.

    Cost: a pass of either model over the data, and eleven of the dense model for the barrier; of an
    autoencoder some seven hundred passes over 512 items; all outputs and last states are held at once.
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
    given = _given_labels(found, labels, batches, device)
    first, second = (_observe(model, batches) for model in (dense, ticket))
    if first.outputs_nc.shape != second.outputs_nc.shape:
        shapes = f"{list(second.outputs_nc.shape[1:])}, the dense model's {list(first.outputs_nc.shape[1:])}"
        raise ModelError(f"the ticket's outputs are of shape {shapes}: it is no ticket of this model")
    classes_n, why_none = _classes(given, first)
    strangers, kind = _foreign_batches(dense, batches, foreign, seed)
    if classes_n is not None:
        counted_n = classes_n != IGNORED
        first, second, right_n = first.at(counted_n), second.at(counted_n), classes_n[counted_n]
    both: dict[str, Figure] = {
        "outputs_explained": _or(explained(second.outputs_nc, first.outputs_nc), NOT_EXPLAINED),
        "states_explained": _explain_states(first, second),
    }
    own: list[dict[str, Figure]] = [
        {"foreign_roc_area": _tell_apart(model, seen, strangers, kind)}
        for model, seen in ((dense, first), (ticket, second))
    ]
    if classes_n is None:
        both |= dict.fromkeys(("agreement", "divergence_nats", "barrier_loss"), why_none)
        own = [{**each, **dict.fromkeys(("quality", "calibration_error", "nc1"), why_none)} for each in own]
    else:
        both["agreement"] = agreement(first.outputs_nc, second.outputs_nc)
        nats = divergence(first.outputs_nc / temperature, second.outputs_nc / temperature)
        both["divergence_nats"] = _or(nats, NOT_FINITE)
        both |= _read_barrier(dense, ticket, plan, batches, classes_n, temperature)
        own = [
            {**each, **_judge(seen, right_n, temperature), **_read_collapse(seen, right_n)}
            for each, seen in zip(own, (first, second), strict=True)
        ]
    field = _read_field(dense, ticket, batches, given, seed)
    absent = {name: each for part in (both, *own) for name, each in part.items() if isinstance(each, str)}
    if isinstance(field, str):
        absent["latent_field"] = field
    elif field.same_basin is None:
        near = f"the spectral radius is {field.dense_radius:.2f}, not below {ATTRACTS:g}"
        absent["same_basin"] = f"{near}: basins would move with any change of weights"
    return Fidelity(
        items=first.items,
        split=split,
        dense=OneModel(**_figures(own[0])),
        ticket=OneModel(**_figures(own[1])),
        foreign=kind if strangers else "",
        cpu_seconds=time.process_time() - begun,
        absent=absent,
        latent_field=None if isinstance(field, str) else field,
        **_figures(both),
    )


def _or(value: float, otherwise: str) -> float | str:
    """Return a figure, or why it is none where it is not finite."""
    return value if math.isfinite(value) else otherwise


def _figures(read: Mapping[str, Figure]) -> dict[str, Any]:
    return {name: each for name, each in read.items() if not isinstance(each, str)}


def _given_labels(
    found: Sequence[Tensor] | None,
    labels: Sequence[Tensor] | Tensor | None,
    batches: Sequence[Tree],
    device: torch.device,
) -> Sequence[Tensor] | None:
    """Return the labels that were given, one tensor a batch.

    Raises:
        ModelError: they are not one for each batch.
    """
    if labels is None:
        return found
    if isinstance(labels, Tensor) or len(labels) != len(batches):
        what = "a tensor" if isinstance(labels, Tensor) else f"{len(labels)} tensors"
        raise ModelError(f"labels is {what} for {len(batches)} batches: give a list, one tensor a batch")
    return [part.to(device) for part in labels]


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """Outputs of all items, a row a prediction, and what the last linear layer read for each.

    ``weight_cd`` is that layer's where its outputs are the model's; ``shape`` that of an item's predictions,
    ``item_n`` the item of each row.
    """

    outputs_nc: Tensor
    states_nd: Tensor | None
    weight_cd: Tensor | None
    item_n: Tensor
    shape: tuple[int, ...]
    items: int

    def at(self, rows_n: Tensor) -> _Seen:
        """Return what was seen at some of the rows."""
        states_nd = None if self.states_nd is None else self.states_nd[rows_n]
        return replace(
            self, outputs_nc=self.outputs_nc[rows_n], states_nd=states_nd, item_n=self.item_n[rows_n]
        )


def _observe(model: nn.Module, batches: Sequence[Tree]) -> _Seen:
    """Return what a model gives for all batches.

    Raises:
        ModelError: it does not take one, or gives no tensor with numbers for each item.
    """
    try:
        with fixed_seed():
            found = [(_class_last(logits_of(each.output)), each) for each in passes(model, batches)]
    except Exception as error:  # the model's own code runs here, and may raise anything
        raise ModelError(f"the model does not take a batch of data: {first_line(error)}") from error
    shapes = [output.shape for output, _ in found]
    if any(len(shape) < 2 for shape in shapes):
        raise ModelError(f"an output of shape {list(shapes[0])} has no numbers for each item")
    # Half precision is read as single: there is little that counts in it.
    outputs_nc = torch.cat([output.flatten(0, -2).float() for output, _ in found])
    states = [
        each.read.flatten(0, -2).float()
        for output, each in found
        if each.read is not None and each.read.shape[:-1] == output.shape[:-1]
    ]
    last = found[-1][1]
    items = sum(shape[0] for shape in shapes)
    places = [math.prod(shape[1:-1]) for shape in shapes for _ in range(shape[0])]
    return _Seen(
        outputs_nc=outputs_nc,
        states_nd=torch.cat(states) if len(states) == len(found) else None,
        weight_cd=last.layer.weight.detach().float() if last.layer and last.gives_outputs else None,
        item_n=torch.arange(items).repeat_interleave(torch.tensor(places)).to(outputs_nc.device),
        shape=tuple(shapes[-1][1:-1]),
        items=items,
    )


def _class_last(output: Tensor) -> Tensor:
    """Return the output with its classes last: of maps (n, c, h, w) they come behind the items."""
    return output.movedim(1, -1) if output.ndim == 4 else output


def _scores(model: nn.Module, batches: Sequence[Tree]) -> Tensor:
    return _observe(model, batches).outputs_nc


def _classes(labels: Sequence[Tensor] | None, seen: _Seen) -> tuple[Tensor | None, str]:
    """Return the class of each prediction, ``IGNORED`` where it is not labelled; or none, and why.

    Raises:
        ModelError: there are not as many labels as predictions, or one names a class that there is not.
    """
    if not labels:
        return None, "no labels were given"
    count = seen.outputs_nc.shape[1]
    if count < 2 or any(each.is_floating_point() or each.dtype == torch.bool for each in labels):
        return None, "the labels are no classes"
    classes_n = torch.cat([each.flatten() for each in labels]).long()
    if len(classes_n) != len(seen.outputs_nc) or any(
        math.prod(each.shape[1:]) != math.prod(seen.shape) for each in labels
    ):
        shape = (seen.items, *seen.shape)
        raise ModelError(
            f"{len(classes_n)} labels for predictions of shape {list(shape)}: one for each is needed"
        )
    counted_n = classes_n != IGNORED
    if not bool(counted_n.any()):
        return None, "nothing is labelled"
    low, high = int(classes_n[counted_n].min()), int(classes_n[counted_n].max())
    if low < 0 or high >= count:
        raise ModelError(f"labels go from {low} to {high}, and the model gives scores of {count} classes")
    return classes_n, ""


def _explain_states(first: _Seen, second: _Seen) -> Figure:
    if first.states_nd is None or second.states_nd is None:
        return "no linear layer comes last in both models"
    if not bool(first.states_nd.isfinite().all() and second.states_nd.isfinite().all()):
        return "a state is not finite"
    share = affine_explained(second.states_nd, first.states_nd, first.item_n)
    return _or(share, "half of the items are no more than the numbers of a state, or these never vary")


def _judge(seen: _Seen, right_n: Tensor, temperature: float) -> dict[str, Figure]:
    error = calibration_error(seen.outputs_nc / temperature, right_n)
    return {
        "quality": float((seen.outputs_nc.argmax(1) == right_n).double().mean()),
        "calibration_error": _or(error, NOT_FINITE),
    }


def _read_collapse(seen: _Seen, right_n: Tensor) -> dict[str, Figure]:
    if seen.states_nd is None:
        return {"nc1": "no linear layer comes last"}
    if bool((right_n == right_n[:1]).all()):
        return {"nc1": "all items are of one class"}
    if not bool(seen.states_nd.isfinite().all()):
        return {"nc1": "a state is not finite"}
    found = neural_collapse(seen.states_nd, right_n, seen.outputs_nc.argmax(1), seen.weight_cd)
    return {
        "nc1": _or(found.nc1, "all classes have the same mean"),
        "nc2_norms": found.nc2_norms,
        "nc2_angles": found.nc2_angles,
        "nc3": "no linear layer gives the outputs" if found.nc3 is None else found.nc3,
        "nc4": found.nc4,
    }


def _read_barrier(
    dense: nn.Module,
    ticket: nn.Module,
    plan: Plan | None,
    batches: Sequence[Tree],
    classes_n: Tensor,
    temperature: float,
) -> dict[str, Figure]:
    """Read loss and error at equal steps from the dense weights to the ticket's, at the dense shape."""
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
        losses.append(float(functional.cross_entropy(scores_nc / temperature, classes_n[counted_n])))
        errors.append(float((scores_nc.argmax(1) != classes_n[counted_n]).double().mean()))
    return {
        "barrier_loss": _or(barrier(losses), "a loss on the way is not finite"),
        "barrier_error": barrier(errors),
    }


class _Reconstruction(nn.Module):
    """An autoencoder as a map of its inputs' shape."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return logits_of(self.model(inputs)).reshape(inputs.shape)


def _read_field(
    dense: nn.Module, ticket: nn.Module, batches: Sequence[Tree], labels: Sequence[Tensor] | None, seed: int
) -> LatentField | str:
    """Read the field of an autoencoder and of its ticket, or return why there is none."""
    if labels is None or not all(map(_are_same, batches, labels)):
        return NO_AUTOENCODER
    inputs_n = torch.cat(list(batches))[:FIELD_ITEMS]
    ours, theirs = _Reconstruction(dense), _Reconstruction(ticket)
    with fixed_seed(seed), torch.no_grad(), evaluation_mode(ours), evaluation_mode(theirs):
        if logits_of(dense(inputs_n[:1])).numel() != inputs_n[:1].numel():
            return "the outputs are not as many as the inputs"
        basins, own_basins = (basins_of(model, inputs_n) for model in (ours, theirs))
        ends = (basins.attractors_a, own_basins.attractors_a)
        if not all(bool(each.isfinite().all()) for each in ends):
            return "an orbit leaves the finite numbers: nothing attracts it"
        try:
            moved = compare_fields(ours, theirs, inputs_n, basins)
        except ValueError as error:
            return str(error)
        radius = mean_radius(ours, basins)
        attracts = radius < ATTRACTS
        return LatentField(
            items=len(inputs_n),
            attractors=len(basins.attractors_a),
            dense_radius=radius,
            ticket_radius=mean_radius(theirs, own_basins),
            output_error=moved.error,
            drift=moved.drift,
            shaken_drift=moved.shaken_drift,
            same_basin=moved.basins if attracts else None,
            shaken_same_basin=moved.shaken_basins if attracts else None,
        )


def _are_same(batch: Tree, labels: Tensor) -> bool:
    """Return whether labels are the inputs themselves, whatever shape an item of them has."""
    if not (isinstance(batch, Tensor) and batch.is_floating_point() and labels.is_floating_point()):
        return False
    return min(batch.ndim, labels.ndim) > 1 and torch.equal(batch.flatten(1), labels.flatten(1))


def _foreign_batches(
    dense: nn.Module, batches: Sequence[Tree], foreign: Tensor | Iterable[Any] | None, seed: int
) -> tuple[Sequence[Tree], str]:
    """Return inputs that are none of the task's and what they are; or none, and why."""
    if foreign is not None:
        given, _ = batches_of(foreign, device_of(dense), "foreign", ModelError, dense)
        if not given:
            raise ModelError("foreign holds no batch")
        return given, "inputs given"
    try:
        made = pruning.synthesize(dense, batches[0], FOREIGN_ITEMS, seed=seed, steps=0, own_words=False)
    except PruneError as error:
        return (), str(error)
    return made.batches, "noise through random networks"


def _tell_apart(model: nn.Module, seen: _Seen, strangers: Sequence[Tree], reason: str) -> Figure:
    """Return how well the largest output of an item tells the task's inputs from foreign ones."""
    if not strangers:
        return reason
    inside_n, outside_m = seen.outputs_nc.amax(1), _scores(model, strangers).amax(1)
    if bool(inside_n.isnan().any() or outside_m.isnan().any()):
        return NOT_FINITE
    return roc_area(inside_n, outside_m)
