"""``Watch``: signals and rules in a user's training loop."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, Final, Self, final

import torch
from torch import Tensor, nn

from tpsprune import pruning, stopping
from tpsprune.errors import DataError, Fault, LoopError, RecipeError, did_you_mean
from tpsprune.loop.batches import batches_of
from tpsprune.loop.replicas import peers_of
from tpsprune.loop.unwrap import check_settings, check_state, device_of, unwrap_model
from tpsprune.numerics.forward import call_model, evaluation_mode, logits_of
from tpsprune.numerics.trees import item_count, tensors_of
from tpsprune.recipe.schema import unread_faults, watched_names
from tpsprune.recipe.settings import read_rule, read_section
from tpsprune.recipe.stop import ConsensusRule, EpochRule, Rule
from tpsprune.recipe.train import Signal
from tpsprune.recipe.train import Watch as Settings
from tpsprune.records import Decision, Reading, dump, load
from tpsprune.signals import Memories, Panel, View
from tpsprune.stopping import Memory

SCHEMA: Final = "tpsprune.watch/1"
KINDS: Final = {"draw": "draw", "end": "stop"}
"""What a rule of ``[stop]`` decides, as journals have it."""


@final
class Watch:
    """Reads signals of a model while it trains, and returns after each reading whether a rule would act.

    ``step`` is called after every optimiser step; every ``every_steps``-th of them is a reading, and the
    others cost nothing. What it returns is a ``Decision`` for each rule: ``kind`` (``draw`` or ``stop``),
    ``act``, ``rule`` and ``reason`` in a sentence. Stopping is leaving the loop.

    A step is read once, however often it is named: ``tps.steps`` serves as it is where gradients are
    accumulated, or a scaler leaves a step out. Step 0, where it is named, is a reading before training.

    >>> import torch, tpsprune
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> x, y = torch.randn(64, 8), torch.arange(64) % 3
    >>> rule = tpsprune.Plateau(monitor="norm", tolerance=0.05, patience=3, min_adjusted_accuracy=0.0)
    >>> with tpsprune.Watch(model, x, signals=["d_eff", "norm"], every_steps=10, draw=rule) as watch:
    ...     for step in range(1, 101):
    ...         torch.nn.functional.cross_entropy(model(x), y).backward()
    ...         optimizer.step()
    ...         optimizer.zero_grad()
    ...         if any(verdict.act for verdict in watch.step(step)):
    ...             break
    >>> step, 0 < watch["d_eff"] <= 1
    (30, True)

    Signals are those of a recipe's ``[watch]``; loops (``h1``) are counted in a separate process, which
    ends with the ``with`` block or at ``close``, and come one reading late. The model is left as it was,
    its mode too. Rules are the values ``Plateau``, ``Patience``, ``Threshold``, ``Mask``, ``Change``,
    ``Reopen``, ``Consensus`` and ``AtEpoch``, or the fields of a recipe as a mapping.

    Of a model that several processes hold, as in ``DistributedDataParallel``, the first process's copy is
    read (running statistics differ between them), on its calibration data, and its rules decide. All
    processes make the same calls: each gets the same readings and the same decisions, so that all leave the
    loop at the same step. One that does not come is named in an error after ten minutes.

    Does not see what is computed elsewhere: pass it to ``step`` by name. Cost: that of the signals, a few
    forward passes over the calibration data at each reading; by the first process alone where there are
    several.

    Args:
        model: what trains; wrapped or not. After pruning, make another watch for the ticket.
        calibration_data: what the signals are read on, some 256 training items prepared as for evaluation. A
            tensor is all items at once; a list or loader yields batches, a batch that is a *list* being
            inputs and, last, labels.
        labels: one tensor a batch, or one tensor for calibration data that are one tensor; only
            ``neural_collapse``, ``commutator_defect`` and ``hessian`` use them. Those of list batches are
            taken from the batches.
        signals: which are read; none are needed where rules read only the values passed to ``step``. Or a
            ``Panel`` of them that outlives this watch: a pruned model gets another watch and the same panel.
        every_steps: steps between two readings.
        draw: when to draw the ticket.
        end: when training is over.
        chance_accuracy: the accuracy of guessing, for rules with a ``min_adjusted_accuracy``; without it one
            over the model's scores.
        ignored_layers: modules whose units are no group, as in a recipe's ``[prune]``.
        seed: of landmarks, null draws and sketches.
        replicated: whether all processes of ``torch.distributed`` hold this model and make these calls;
            without it, whether the model is wrapped in ``DistributedDataParallel``.
        group_tensors: where groups are read, of a model that cannot be surveyed as it is, being spread over
            processes (``survey`` of the same model whole).
        settings: the other fields of ``[watch]``: ``h1_points``, ``h1_every``, ``edge_window``,
            ``edge_parameters``, ``commutator_mode``, ``rank_share``.

    Raises:
        RecipeError: a setting or a rule does not exist or is out of bounds; every fault, with what is
            expected.
        DataError: the calibration data are no batches or lack items, the labels are not one an item, or the
            model does not take the data.
        ModelError: the model is sharded over processes.
        PeersError: another process that holds the model has not come here, or has a fault of its own.
    """

    def __init__(
        self,
        model: nn.Module,
        calibration_data: Any,
        labels: Tensor | Sequence[Tensor] | None = None,
        *,
        signals: Sequence[Signal] | Panel = ("d_eff", "h1", "spectral_edge", "norm"),
        every_steps: int = 100,
        draw: Rule | Mapping[str, Any] | None = None,
        end: Rule | Mapping[str, Any] | None = None,
        chance_accuracy: float | None = None,
        ignored_layers: Sequence[str] = (),
        seed: int = 0,
        replicated: bool | None = None,
        group_tensors: pruning.GroupTensors | None = None,
        **settings: Any,
    ) -> None:
        names: list[str] = list(signals.names) if isinstance(signals, Panel) else list(signals)
        values = {"signals": names, "every_steps": every_steps, **settings}
        of_recipes = {
            "calibration_items": "calibration_data has them",
            "every_epochs": "use every_steps",
            "validation": "pass what you validate to step",
        }
        if faults := [
            Fault(name, f"is for recipes; here {why}") for name, why in of_recipes.items() if name in values
        ]:
            raise RecipeError("Watch", faults)
        self._settings = read_section(Settings, "watch", values, "Watch")
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            message = f"names {', '.join(map(repr, doubled))} more than once"
            raise RecipeError("Watch", [Fault("signals", message)])
        rules = {"draw": draw, "end": end}
        self._rules = {
            name: read_rule(rule, name, "Watch") for name, rule in rules.items() if rule is not None
        }
        self.every_steps = every_steps
        """Steps between two readings."""
        self._model = unwrap_model(model) if group_tensors is None else model
        self._peers = peers_of([model], replicated, "Watch")
        self._peers.together(
            lambda: self._prepare(calibration_data, labels, chance_accuracy, ignored_layers, group_tensors)
        )
        self._last_step: int | None = None
        self._is_checked = self._is_closed = False
        self.readings: list[Reading] = []
        """Every reading so far, in the order in which they came."""
        self._owns_panel = not isinstance(signals, Panel)
        self._panel = signals if isinstance(signals, Panel) else Panel.of(self._settings, seed)
        self.signal_memories: Memories = self._panel.start()
        """What each signal remembers."""

    def _prepare(
        self,
        calibration_data: Any,
        labels: Tensor | Sequence[Tensor] | None,
        chance_accuracy: float | None,
        ignored_layers: Sequence[str],
        group_tensors: pruning.GroupTensors | None,
    ) -> None:
        """Take the data, find what signals read of the model, and start the rules."""
        # Every process takes its own data, which may be a loader that they share; only the first one's count.
        self._batches, self._labels = _calibration_batches(calibration_data, labels, self._model)
        signals = self._settings.signals if self._peers.is_first else ()
        self._group_tensors = group_tensors or survey(self._model, self._batches[0], signals, ignored_layers)
        self.rule_memories: dict[str, Memory] = {
            name: stopping.start(
                rule, chance_accuracy=_chance_accuracy(rule, chance_accuracy, self._model, self._batches[0])
            )
            for name, rule in self._rules.items()
        }
        """What each rule remembers."""

    def step(
        self,
        step: int,
        *,
        epoch: float | None = None,
        readings: Iterable[Reading] = (),
        **values: float | Tensor | Callable[[], float | Tensor],
    ) -> tuple[Decision, ...]:
        """Read if ``step`` is due, and return the decision of each rule; nothing between readings.

        Nothing either where ``step`` is that of the last call, which was read then if it was due.
        ``values`` are recorded with the signals under their names, as in ``validation_accuracy=0.9``; what is
        expensive is passed as a function without arguments, which is called only for a reading; of several
        processes by all, as it may be work that they share, and the first one's value counts.
        ``readings`` are taken as they are, as those of ``TPS.order_parameters``; an iterator is consumed
        for a reading only.

        Raises:
            LoopError: steps go down, or the watch is closed.
            RecipeError: at the first reading, where a rule needs a signal that is not read.
            PeersError: another process that holds the model reads no such step.
        """
        if self._is_closed:
            raise LoopError("Watch: this watch is closed; make another one")
        if self._last_step is not None and step < self._last_step:
            raise LoopError(
                f"Watch: step {step} comes after step {self._last_step}: steps count on over all epochs"
            )
        if step == self._last_step:
            return ()
        if step % self.every_steps:
            self._last_step = step
            return ()
        names = tuple(dict.fromkeys((*watched_names(self._settings.signals), *values)))
        more = tuple(readings)
        self._refuse_unread((*names, *(each.signal for each in more if not each.group)), values, epoch)
        at = 0.0 if epoch is None else float(epoch)
        passed = tuple(
            Reading.of(name, float(value() if callable(value) else value), step=step, epoch=at)
            for name, value in values.items()
        )
        self._peers.meet(f"Watch.step({step})")
        current, decisions = self._told(lambda: self._read((*passed, *more), step=step, epoch=at))
        self.readings.extend(current)
        self._last_step = step
        return decisions

    def __getitem__(self, signal: str) -> float | None:
        """Return the last value of a signal of the whole model; ``None`` where it had none then.

        Raises:
            LoopError: nothing of that name has been read.
        """
        for reading in reversed(self.readings):
            if reading.signal == signal and not reading.group:
                return reading.value
        names = sorted({reading.signal for reading in self.readings if not reading.group})
        hint = did_you_mean(signal, names) or f" (read so far: {', '.join(names) or 'nothing'})"
        raise LoopError(f"Watch: nothing has been read under '{signal}'{hint}")

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold: tensors, and values of JSON.

        Of several processes the first one's state is to be kept, and loaded in all.
        """
        tensors, signals = self._panel.pack(self.signal_memories)
        values = {
            "settings": self._describe(),
            "last_step": self._last_step,
            "signals": signals,
            "rules": {name: dump(memory) for name, memory in self.rule_memories.items()},
            "readings": [dump(reading) for reading in self.readings],
        }
        # Through JSON: an enum of this package would be pickled as a class of this package.
        return {"schema": SCHEMA, "tensors": tensors, "plain": json.loads(json.dumps(values))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what ``state_dict`` returned, into a watch with the same signals and rules.

        Raises:
            LoopError: it is no state of a watch, lacks something, or is of one with other settings: names the
                first.
        """
        check_state("Watch", state, ("tensors", "plain"), SCHEMA)
        values = state["plain"]
        check_state("Watch", values, ("settings", "last_step", "signals", "rules", "readings"))
        check_settings("Watch", values["settings"], self._describe())
        check_state("Watch", values["signals"], self._settings.signals)
        check_state("Watch", values["rules"], self._rules)
        self.signal_memories = self._panel.unpack(state["tensors"], values["signals"])
        try:
            self.rule_memories = {name: stopping.recall(values["rules"][name]) for name in self._rules}
        except ValueError as error:
            raise LoopError(f"Watch: the state of a rule is none ({error})") from error
        self._last_step = values["last_step"]
        self.readings = [load(Reading, raw) for raw in values["readings"]]

    def close(self) -> None:
        """Collect what is still on its way into ``readings`` and end the process that counts loops.

        That of a panel passed by the caller runs on. Of several processes the first one alone gets what is
        still on its way: nobody waits for another here.
        """
        if not self._is_closed:
            self._is_closed = True
            try:
                self.signal_memories, late = self._panel.finish(self.signal_memories)
                self.readings.extend(late)
            finally:
                self._close_panel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._is_closed = True
            self._close_panel()

    def _close_panel(self) -> None:
        if self._owns_panel:
            self._panel.close()

    def _view(self, step: int, epoch: float) -> View:
        return View(
            model=self._model,
            calibration_batches=tuple(self._batches),
            step=step,
            epoch=epoch,
            consumers=self._group_tensors.consumers,
            blocks=self._group_tensors.blocks,
            producers=self._group_tensors.written,
            norm_scales=self._group_tensors.scaled,
            labels=tuple(self._labels),
        )

    def _refuse_unread(self, names: Sequence[str], values: Mapping[str, Any], epoch: float | None) -> None:
        if self._is_checked:
            return
        taken = set(watched_names(self._settings.signals)).intersection(values)
        faults = [Fault(name, "is read by a signal already: pass it under another name") for name in taken]
        for name, rule in self._rules.items():
            faults += _unread_faults(name, rule, names, has_epoch=epoch is not None)
        if faults:
            raise RecipeError("Watch", faults)
        self._is_checked = True

    def _read(
        self, passed: Sequence[Reading], *, step: int, epoch: float
    ) -> tuple[tuple[Reading, ...], tuple[Decision, ...]]:
        """Return the readings of a step, those passed first, and what each rule makes of them."""
        with torch.autocast(device_of(self._model).type, enabled=False):
            self.signal_memories, from_signals = self._panel.read(
                self.signal_memories, self._view(step, epoch)
            )
        current = (*passed, *from_signals)
        return current, tuple(
            self._decide(name, rule, current, step=step, epoch=epoch) for name, rule in self._rules.items()
        )

    def _told(
        self, read: Callable[[], tuple[tuple[Reading, ...], tuple[Decision, ...]]]
    ) -> tuple[tuple[Reading, ...], tuple[Decision, ...]]:
        """Return what the first process reads and decides; the others remember what its rules do."""
        if self._peers.size == 1:
            return read()

        def describe() -> dict[str, Any]:
            current, decisions = read()
            return {
                "readings": [dump(each) for each in current],
                "decisions": [dump(each) for each in decisions],
                "rules": {name: dump(memory) for name, memory in self.rule_memories.items()},
            }

        told = self._peers.first(describe)
        self.rule_memories = {name: stopping.recall(raw) for name, raw in told["rules"].items()}
        readings = tuple(load(Reading, each) for each in told["readings"])
        return readings, tuple(load(Decision, each) for each in told["decisions"])

    def _decide(
        self, name: str, rule: Rule, readings: Sequence[Reading], *, step: int, epoch: float
    ) -> Decision:
        self.rule_memories[name], verdict = stopping.step(rule, self.rule_memories[name], readings)
        return Decision(
            kind=KINDS[name],
            act=verdict.act,
            step=step,
            epoch=epoch,
            rule=stopping.describe(rule),
            reason=verdict.reason,
        )

    def _describe(self) -> dict[str, Any]:
        settings = {**asdict(self._settings), "signals": list(self._settings.signals)}
        if self._settings.edge_parameters == "all":
            del settings["edge_parameters"]  # States from before there was a choice are of all.
        if self._settings.commutator_mode == "evaluation":
            del settings["commutator_mode"]
        return {**settings, **{name: stopping.describe(rule) for name, rule in self._rules.items()}}


def _calibration_batches(
    calibration_data: Any, labels: Tensor | Iterable[Tensor] | None, model: nn.Module
) -> tuple[list[Any], list[Tensor]]:
    """Return batches of calibration data and their labels, a tensor a batch or none, on the model's device.

    One tensor of labels belongs to data that are one tensor, and is split as they are. Labels that a loader
    yields are taken unchecked: most signals use none.

    Raises:
        DataError: there are no batches, or one without items; or the labels are not one an item.
    """
    batches, found = batches_of(
        calibration_data, device_of(model), "Watch: calibration_data", DataError, model
    )
    if not batches:
        raise DataError("Watch: calibration_data is empty; use some 256 training items")
    for number, batch in enumerate(batches, 1):
        # A batch without any tensor is for the model to interpret.
        if any(tensor.ndim for tensor in tensors_of(batch)) and not item_count(batch):
            raise DataError(
                f"Watch: batch {number} of {len(batches)} of calibration_data has no items; expected"
                " some 256 training items in all"
            )
    if labels is None:
        return batches, found or []
    if isinstance(labels, Tensor):
        labels = _split_labels(labels, calibration_data)
    parts = list(labels)
    _refuse_misfit(parts, batches)
    return batches, [part.to(device_of(model)) for part in parts]


def survey(
    model: nn.Module, batch: Any, signals: Sequence[str], ignored_layers: Sequence[str]
) -> pruning.GroupTensors:
    """Return the tensors that signals read, by group; without signals none, and no survey is made.

    Raises:
        DataError: the model does not take the batch.
    """
    if not signals:
        return pruning.GroupTensors({}, {}, {})
    try:
        with torch.no_grad(), evaluation_mode(model):
            call_model(model, batch)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise DataError(f"Watch: the model does not take calibration_data: {error}") from error
    return pruning.tensors_by_group(model, pruning.find_groups(model, batch, ignored_layers))


def _split_labels(labels: Tensor, calibration_data: Any) -> list[Any]:
    """Return one tensor of labels in the batches into which the one tensor of calibration data was split."""
    if not isinstance(calibration_data, Tensor):
        raise DataError(
            "Watch: labels are one tensor, and calibration_data is batches; expected a list of one tensor"
            " a batch"
        )
    if not labels.ndim or len(labels) != len(calibration_data):
        raise DataError(
            f"Watch: labels have shape {tuple(labels.shape)}, and calibration_data has"
            f" {len(calibration_data)} items; use one label an item"
        )
    return batches_of(labels, labels.device, "Watch: labels", DataError)[0]


def _refuse_misfit(labels: Sequence[Any], batches: Sequence[Any]) -> None:
    if len(labels) != len(batches):
        raise DataError(
            f"Watch: labels are {len(labels)} tensors, and calibration_data is {len(batches)} batches;"
            " expected one tensor a batch, or one for all where calibration_data is one tensor"
        )
    misfits = []
    for number, (label_i, batch) in enumerate(zip(labels, batches, strict=True), 1):
        items = item_count(batch)
        if not isinstance(label_i, Tensor):
            misfits.append(f"those of batch {number} are {type(label_i).__name__}")
        elif not label_i.ndim or len(label_i) != items:
            misfits.append(f"those of batch {number} have shape {tuple(label_i.shape)} for {items} items")
    if misfits:
        raise DataError(f"Watch: labels: {'; '.join(misfits)}; use a tensor of one label an item")


def _unread_faults(place: str, rule: Rule, names: Sequence[str], *, has_epoch: bool) -> list[Fault]:
    """Return a fault for every signal that a rule needs and that is not among the ``names`` read.

    A rule that waits for something to be learned, without an accuracy, would never act.
    """
    faults = unread_faults(place, rule, names, "here")
    for where, each in _parts_of(place, rule):
        if isinstance(each, EpochRule) and not has_epoch:
            message = "counts epochs: pass them, as in step(step, epoch=step / steps_per_epoch)"
            faults.append(Fault(where, message))
        if _waits_to_learn(each) and "validation_accuracy" not in names:
            message = (
                "waits for validation accuracy: pass it, as in step(step, validation_accuracy=0.9),"
                " or set it to 0"
            )
            faults.append(Fault(f"{where}.min_adjusted_accuracy", message))
    return faults


def _waits_to_learn(rule: Rule) -> bool:
    """Return whether a rule, or a part of it, does not act until something is learned."""
    return any(getattr(each, "min_adjusted_accuracy", 0.0) > 0.0 for _, each in _parts_of("", rule))


def _chance_accuracy(rule: Rule, accuracy: float | None, model: nn.Module, batch: Any) -> float:
    """Return the accuracy of guessing: ``accuracy``, else one over the model's scores where a rule needs it.

    Raises:
        RecipeError: ``accuracy`` is no share below 1.
        DataError: the model's output is no table of scores, and there is no ``accuracy``.
    """
    if accuracy is not None:
        if not 0.0 <= accuracy < 1.0:
            message = f"must be a share from 0 to below 1 (found {accuracy:g})"
            raise RecipeError("Watch", [Fault("chance_accuracy", message)])
        return float(accuracy)
    if not _waits_to_learn(rule):
        return 0.0
    try:
        with torch.no_grad(), evaluation_mode(model):
            return 1.0 / logits_of(call_model(model, batch)).shape[-1]
    except (TypeError, IndexError) as error:
        raise DataError(f"Watch: {error}; chance_accuracy, that of guessing, is needed") from error


def _parts_of(place: str, rule: Rule) -> Iterator[tuple[str, Rule]]:
    if isinstance(rule, ConsensusRule):
        for rank, each in enumerate(rule.rules):
            yield f"{place}.rules.{rank}", each
    else:
        yield place, rule
