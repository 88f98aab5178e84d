"""Extraction from Python: a model and some batches in, a smaller model out; no recipe."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tpsprune import measure, pruning
from tpsprune.errors import PruneError, did_you_mean, first_line
from tpsprune.export import saves_itself
from tpsprune.loop.answers import joules_of_answer
from tpsprune.loop.batches import batches_of, whole_batches
from tpsprune.loop.meter import Meter
from tpsprune.loop.offload import NOT_REPAIRED, offloading, refuse_what_needs_memory
from tpsprune.loop.replicas import peers_of, tell_extraction
from tpsprune.loop.unwrap import device_of, plain_model
from tpsprune.numerics.forward import evaluation_mode, fixed_seed
from tpsprune.numerics.peers import ALONE, AbstractPeers
from tpsprune.numerics.trees import WholeBatch, WithCalls, item_count, map_tensors, take_items, tensors_of
from tpsprune.pruning import Extraction, Plan
from tpsprune.pruning.costs import timed
from tpsprune.recipe.prune import Joules, Latency, Macs, Prune, Target
from tpsprune.recipe.settings import prune_settings


@torch.inference_mode(False)
def extract(
    model: nn.Module,
    calibration_data: Tensor | Iterable[Any],
    target: Target | None = None,
    *,
    items: Callable[[Any], int] | None = None,
    also: Sequence[Callable[[Any, Any], Any]] = (),
    labels: Sequence[Tensor] | None = None,
    meter: Meter | None = None,
    example: Any = None,
    seed: int = 0,
    replicated: bool | None = None,
    offload: str | Path | None = None,
    weights: str | Path | None = None,
    **settings: Any,
) -> Extraction:
    """Draw a smaller model from a trained one, without labels: cut, compensated, and repaired.

    >>> import torch, tpsprune
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> ticket = tpsprune.extract(model, torch.randn(512, 8), target=tpsprune.Macs(0.5))
    >>> ticket.ticket[0].out_features, ticket.macs_share, model[0].out_features
    (16, 0.5, 32)
    >>> again = tpsprune.replay(model, ticket.plan)  # the plan on other weights, without compensation
    >>> tuple(again[2].weight.shape)
    (4, 16)

    Of a model that several processes hold, as in ``DistributedDataParallel``, the first process's copy is
    cut, on its calibration data, and all get that ticket, equal to the bit. All make this call; wrap the
    ticket anew, and make it a new optimiser, in each.

    Args:
        model: not changed, whatever happens: mode, flags, devices and number types too. Of one that
            ``torch.compile`` or ``DataParallel`` wraps the ticket is a plain module: compile it again.
        calibration_data: a few hundred items or more, prepared as for evaluation. A tensor or a
            tuple is passed by position, a mapping by keyword. A *list*, as a ``DataLoader`` yields it, is
            inputs and, last, labels, or inputs alone where the model takes them all. A single tensor is all
            the items at once and is split. All of it is kept in memory: take a part of a long loader with
            ``itertools.islice``. Where items do not lie along the first axis, see ``items``. Without data,
            ``"synthetic"``: items that a language model writes, or made up and matched to the model's batch
            norms; nothing is repaired then.
        target: ``Macs``, ``Params``, ``Bytes``, ``Latency``, ``Joules``, ``Tolerance`` or ``Widths``; half
            the multiply-accumulates without one.
        items: how many items a batch holds, where they do not lie along its tensors' first axes: a graph as
            ``(x, edge_index)``, a list of objects, a class of one's own. Such a batch is never split or
            indexed, and a list is not inputs and labels: it is passed to the model as it is. Count what the
            layers inside see along their first axis (nodes of a graph). A dozen small batches do better than
            one large, for every trial runs the first batch whole.
            ``items=lambda graph: len(graph[0])``
        also: other ways in which the model is called, as functions of it and a batch
            (``also=[lambda model, batch: model.decode(batch)]``): what they read is traced, proved and
            verified like what the forward pass reads, and what they multiply counts. A layer that runs in
            training mode only keeps its inputs.
        labels: one tensor a batch; only ``units="taylor"`` uses them. Those of list batches are taken from
            the batches.
        meter: what a target of ``Joules`` is metered by (``tpsprune.Meter()``), between windows; what that
            takes is among its windows.
        example: with ``calibration_data="synthetic"`` a batch of inputs; of floats and token ids the shape
            counts alone.
        seed: of ``units="random"`` and of the order of items in the repair.
        replicated: whether all processes of ``torch.distributed`` hold this model and make this call; without
            it, whether the model is wrapped in ``DistributedDataParallel``.
        offload: a folder on a disk, for a model that the memory cannot hold several times: the copies and
            statistics that a cut is made of lie in files there, a few layers of them in memory at a time. The
            same ticket, to the bit, as without it and ``repair=False``: nothing is repaired. The ticket's
            weights lie there too, in files without a name that are gone with it. On the CPU alone; not with
            targets of ``Latency`` or ``Joules``, ``low_rank``, or ``units`` by gradients.
        weights: with ``offload``, a safetensors file, or a folder with the parts of one, for a model that was
            made on ``meta``: its weights are never in memory as a whole.
        settings: the fields of ``[prune]`` in a recipe (``ignored_layers``, ``round_to``, ``compensate``,
            ``quality``, ``repair``, ...).

    Returns:
        The ticket, its plan, the change of every group, what was not pruned and why. ``save_pretrained`` of
        a ticket of transformers writes what ``from_pretrained`` loads.

    Cost: the passes of ``pruning.extract``; the repair, unless ``quality="fast"``, is a dozen passes forward
    and backward over the calibration data or 200 steps of 64 items, whichever is less, and up to three times
    that where they bring little: most of the time.

    Raises:
        PruneError: a setting does not exist or is out of bounds, the batches do not fit the model, the target
            is out of reach, pruning was refused, or the model was made in inference mode and has no
            gradients; or it is scripted or quantised; or with ``offload`` a setting needs all in memory, or
            the folder will not do.
        ModelError: its parameters are sharded over processes.
        PeersError: another process that holds the model has not come here, or has a fault of its own.
        ArtifactError: ``weights`` cannot be read or do not fit the model.
        CannotWriteError: the folder of ``offload`` is full.
    """
    target = Macs(0.5) if target is None else target
    peers = peers_of([model], replicated, "extract")
    if offload is not None:
        refuse_what_needs_memory(prune_settings(target, settings))
        if peers.size > 1:
            raise PruneError(
                "offload keeps the weights of one process in files: cut the model in one process"
            )
    with offloading(model, offload, weights) as whole:
        prepared = peers.together(
            lambda: prepare(
                whole, calibration_data, target, settings, items, also, labels, seed, meter, example, peers
            )
        )

        def make() -> Extraction:
            found = pruning.extract(prepared.model, prepared.batches, prepared.settings, **prepared.inputs)
            return finish(found, prepared, repairs=offload is None)

        return tell_extraction(peers, prepared.model, make)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A model, its calibration data and settings, checked; what an extraction needs besides."""

    model: nn.Module
    batches: Sequence[Any]
    settings: Prune
    seed: int
    inputs: dict[str, Any]
    note: str = ""


def prepare(
    model: nn.Module,
    calibration_data: Tensor | Iterable[Any],
    target: Target,
    settings: Mapping[str, Any],
    items: Callable[[Any], int] | None,
    also: Sequence[Callable[[Any, Any], Any]],
    labels: Sequence[Tensor] | None,
    seed: int,
    meter: Meter | None = None,
    example: Any = None,
    peers: AbstractPeers = ALONE,
) -> Prepared:
    """Check what a caller of ``extract`` gave; the arguments are its own.

    Each of several processes takes its own data, which may be a loader that they share; only the first one
    makes items up.

    Raises:
        PruneError: as ``extract``.
        ModelError: as ``extract``.
    """
    model = plain_model(model)
    chosen = prune_settings(target, settings)
    if chosen.rounds > 1:
        raise PruneError(
            "rounds > 1 needs the training between them: extract, train the ticket, and extract from it again"
        )
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_inference():
            raise PruneError(
                f"{name} was made under torch.inference_mode and can have no gradient; "
                "load the model outside of it (use torch.no_grad())"
            )
    device = device_of(model)
    batches: Sequence[Any]
    note = ""
    if example is not None and not isinstance(calibration_data, str):
        raise PruneError("example is read with calibration_data = 'synthetic' alone")
    if isinstance(calibration_data, str):
        _check_example(calibration_data, example)
        batches, found = [], None
        if peers.is_first:
            example = map_tensors(example, lambda each: each.to(device))
            made = pruning.synthesize(model, example, seed=seed)
            batches, note = made.batches, made.note
        chosen = replace(chosen, calibration="synthetic")
    elif items is None:
        batches, found = batches_of(calibration_data, device, "calibration_data", PruneError, model)
    else:
        batches, found = whole_batches(calibration_data, items, device, "calibration_data", PruneError), None
    if also and batches:
        _try_calls(model, batches[0], also)
        batches = [WithCalls(batch, tuple(also)) for batch in batches]
    labels = found if labels is None else [part.to(device) for part in labels]
    inputs: dict[str, Any] = {"seed": seed}
    if labels and chosen.units != "interpolation":
        inputs["labels"] = labels
    if isinstance(chosen.target, Latency | Joules) or chosen.low_rank:
        inputs["clock"] = _clock(batches, chosen.target, meter)
    return Prepared(model, batches, chosen, seed, inputs, note)


def _check_example(asked: str, example: Any) -> None:
    if asked != "synthetic":
        hint = did_you_mean(asked, ["synthetic"])
        raise PruneError(f"calibration_data = {asked!r}{hint}; expected batches, or 'synthetic'")
    if example is None or not list(tensors_of(example)):
        raise PruneError(
            "calibration_data = 'synthetic' needs example: a batch of inputs, of whose floats and token ids "
            "the shape counts alone, as in example=torch.zeros(1, 3, 224, 224)"
        )


def finish(extraction: Extraction, prepared: Prepared, *, repairs: bool = True) -> Extraction:
    """Repair a ticket that was cut, as the settings say; its ``save_pretrained`` is ours from now on.

    Where it ``repairs`` nothing a note says so of settings that would.
    """
    chosen, batches = prepared.settings, prepared.batches
    if prepared.note:
        extraction = replace(extraction, notes=(*extraction.notes, prepared.note))
    steps = pruning.count_repair_steps(chosen, sum(map(item_count, batches)))
    if steps and not repairs:
        extraction = replace(extraction, notes=(*extraction.notes, NOT_REPAIRED))
    elif steps:
        with timed(extraction.times, "repair"):
            repairing = pruning.repair_ticket(
                extraction, prepared.model, batches, chosen, steps=steps, seed=prepared.seed
            )
            extraction = _finished(repairing)
    else:
        extraction = pruning.note_no_repair(extraction, chosen)
    saves_itself(extraction.ticket)
    return extraction


def _try_calls(model: nn.Module, batch: Any, also: Sequence[Callable[[Any, Any], Any]]) -> None:
    """Refuse a call beside the forward pass that fails on a batch.

    Raises:
        PruneError: names which, and how.
    """
    inputs = batch.data if isinstance(batch, WholeBatch) else batch
    for rank, call in enumerate(also):
        try:
            with torch.no_grad(), evaluation_mode(model), fixed_seed():
                call(model, inputs)
        except Exception as error:  # the caller's own code runs here, and may raise anything
            raise PruneError(
                f"also[{rank}] fails on the first batch of calibration_data: {first_line(error)}; expected a "
                "function of the model and a batch"
            ) from error


def _finished(steps: Generator[Any, None, Extraction]) -> Extraction:
    """Run a generator to its end, and return what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            extraction: Extraction = end.value
            return extraction


def replay(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of ``model`` pruned to the units of ``plan``, every weight kept equal bit for bit.

    Nothing is compensated: this is for initial or rewound weights, and for an empty shell that a ticket's
    state dict is loaded into. Layers that were given a bias get one of zeros.

    Raises:
        PruneError: the plan is of another model; the message names the first tensor that differs.
    """
    return saves_itself(pruning.replay(plain_model(model), plan))


def _clock(batches: Sequence[Any], target: Target, meter: Meter | None) -> Callable[[nn.Module], float]:
    """Return the seconds, or joules, of a pass over as many copies of the first item as a target asks for.

    With a target of neither it is the first items themselves. A batch that cannot be split is timed as it is.

    Raises:
        PruneError: a target of joules without a meter.
    """
    if isinstance(target, Latency | Joules):
        items = torch.zeros(target.batch_items, dtype=torch.int64)
    else:
        items = torch.arange(min(measure.TIMED_ITEMS, item_count(batches[0])) if batches else 0)
    batch = take_items(batches[0], items) if batches else None
    if isinstance(target, Joules):
        if not isinstance(meter, Meter):
            raise PruneError(f"target {target} needs a meter: tpsprune.extract(..., meter=tpsprune.Meter())")
        return partial(joules_of_answer, batch, meter)
    return lambda model: measure.batch_latency(model, batch).median_seconds
