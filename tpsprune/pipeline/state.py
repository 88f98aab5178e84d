"""Where a run stands: a value, and its checkpoint on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypeAlias

import torch
from torch import Tensor, nn

from tpsprune import training
from tpsprune.errors import ArtifactError, LoopError, RunFolderError, first_line
from tpsprune.numerics.peers import ALONE, AbstractPeers
from tpsprune.pipeline.slots import common_of, parts_of, read_parts, read_slot, set_current, write_parts
from tpsprune.recipe import Recipe
from tpsprune.records import Decision, Pruned, Reading, Window, dump, load
from tpsprune.records.serial import Joules, Natural, Seconds
from tpsprune.runs import RunFolder, strict_json
from tpsprune.runs.tensors import load_tensors, save_tensors, shapes_of
from tpsprune.signals import Memories, Panel
from tpsprune.stopping import Memory
from tpsprune.tps import Regulariser

Stage: TypeAlias = Literal["dense", "prune", "between", "retrain", "benchmark"]
_UNCHANGED: Final = ("stage", "step", "shift", "rule", "clock", "lines", "rounds", "drawn", "stopped")
"""Fields of ``State`` that a checkpoint holds as they are."""


@dataclass(frozen=True, slots=True)
class Clock:
    """What this timeline has cost, without work that was lost: processor seconds by purpose, and energy.

    ``joules`` (``None`` where nothing is metered), ``seconds`` and ``cpu_seconds`` are those of training
    and evaluation, which any run pays; a projection rests on them.
    """

    train: Seconds = 0.0
    watch: Seconds = 0.0
    tps: Seconds = 0.0
    joules: Joules | None = 0.0
    seconds: Seconds = 0.0
    cpu_seconds: Seconds = 0.0

    def having_paid(self, window: Window) -> Clock:
        """Return the clock with a window of training or evaluation added."""
        metered = self.joules is not None and window.total_joules is not None
        return replace(
            self,
            joules=self.joules + window.total_joules if metered else None,  # type: ignore[operator]
            seconds=self.seconds + window.seconds,
            cpu_seconds=self.cpu_seconds + window.cpu_seconds,
            train=self.train + (0.0 if window.phase == "evaluate" else window.cpu_seconds),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning(Pruned):
    """All rounds so far in the figures of one, widths and shares against the dense model's.

    ``dense_clock`` is the clock at the first round; ``ends`` are the last step before the next round and the
    total of its schedule, where the ticket is trained until then.
    """

    notes: tuple[str, ...]
    dense_clock: Clock
    ends: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What a checkpoint holds besides tensors: the fields of ``State``, ``pruning`` being ``cut``."""

    SCHEMA: ClassVar[str] = "tpsprune.state/3"

    schema: Literal["tpsprune.state/3"] = "tpsprune.state/3"
    stage: Stage
    step: Natural
    shift: int
    signals: dict[str, dict[str, Any]]
    tps: dict[str, Any]
    rule: Memory
    clock: Clock
    lines: tuple[Natural, Natural]
    cut: Pruning | None
    rounds: Natural
    drawn: Decision | None
    stopped: Decision | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """A run between two readings.

    ``step`` counts on the stage's own schedule; adding ``shift`` gives the steps trained since the run
    began, the clock of journals and pictures. ``lines`` are those of the readings and the decisions
    journal that belong to this state: later ones are of a future that a kill took back. ``rounds`` is how
    many of them have been pruned.
    """

    stage: Stage
    step: int
    shift: int
    model: nn.Module
    optimizer: torch.optim.Optimizer
    regulariser: Regulariser | None
    signals: Memories
    rule: Memory
    clock: Clock
    lines: tuple[int, int]
    pruning: Pruning | None = None
    rounds: int = 0
    drawn: Decision | None = None
    stopped: Decision | None = None
    adapter: training.Adapter | None = None

    @property
    def trained(self) -> nn.Module:
        """What the optimiser's parameters are those of: the adapter where there is one, else the model."""
        return self.model if self.adapter is None else self.adapter

    def count_trained(self, steps_per_epoch: int) -> tuple[int, float]:
        """Return steps and epochs trained since the run began."""
        steps = self.step + self.shift
        return steps, steps / steps_per_epoch

    def starting_at(self, step: int, stage: Stage) -> State:
        """Return the state at ``step`` of the schedule of another stage, after the steps trained so far."""
        return replace(self, stage=stage, step=step, shift=self.shift + self.step - step)

    def having_paid(self, window: Window | None) -> State:
        """Return the state with a closed window of training or evaluation, if any, on its clock."""
        return self if window is None else replace(self, clock=self.clock.having_paid(window))

    def having_spent(self, *, watch: float = 0.0, tps: float = 0.0) -> State:
        """Return the state with processor seconds of watching and of TPS added to its clock."""
        return replace(
            self, clock=replace(self.clock, watch=self.clock.watch + watch, tps=self.clock.tps + tps)
        )

    def having_written(
        self, folder: RunFolder, readings: Sequence[Reading], decisions: Sequence[Decision]
    ) -> State:
        """Journal readings and decisions, and return the state that counts their lines as its own."""
        folder.readings.append_all(readings)
        folder.decisions.append_all(decisions)
        return replace(self, lines=(self.lines[0] + len(readings), self.lines[1] + len(decisions)))


@dataclass(frozen=True, slots=True)
class Restored:
    """A checkpoint as read, before any model is built: the stage decides which model to build."""

    path: Path
    tensors: Mapping[str, Tensor]
    saved: Saved
    parts: Path | None = None
    """Where each process of a spread model finds its parts."""

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter trains the model."""
        return bool(self._part("adapter"))

    def state(
        self,
        model: nn.Module,
        regulariser: Regulariser | None,
        panel: Panel,
        recipe: Recipe,
        adapter: training.Adapter | None = None,
    ) -> State:
        """Fill ``model`` and everything else with what was saved.

        Raises:
            RunFolderError: its parts do not fit the recipe, or one another.
        """
        try:
            whole = self
            if self.parts is not None:
                whole = replace(self, tensors={**self.tensors, **read_parts(self.parts, model)})
            return whole._state(model, regulariser, panel, recipe, adapter)
        except (
            *(RuntimeError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError),
            *(ArtifactError, LoopError),
        ) as error:
            raise RunFolderError(
                f"{self.path} does not fit its recipe ({first_line(error)}): it was changed from outside; "
                "start again with --again"
            ) from error

    def _state(
        self,
        model: nn.Module,
        regulariser: Regulariser | None,
        panel: Panel,
        recipe: Recipe,
        adapter: training.Adapter | None,
    ) -> State:
        model.load_state_dict(self._part("model"))
        trained = model
        if adapter is not None:
            adapter.load_state_dict(self._part("adapter"))
            trained = adapter
        optimizer = training.make_optimizer(trained, recipe.train)
        moments: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self._part("optimizer").items():
            parameter, _, key = name.rpartition("/")
            moments.setdefault(parameter, {})[key] = tensor
        training.load_state_by_name(optimizer, trained, moments)
        if regulariser is not None:
            regulariser.load_state(self._part("tps"), self.saved.tps)
        training.load_random_state(self._part("random"))
        return State(
            **{name: getattr(self.saved, name) for name in _UNCHANGED},
            model=model,
            optimizer=optimizer,
            regulariser=regulariser,
            signals=panel.unpack(self._part("signals"), self.saved.signals),
            pruning=self.saved.cut,
            adapter=adapter,
        )

    def _part(self, room: str) -> dict[str, Tensor]:
        prefix = f"{room}:"
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }


def save_checkpoint(folder: RunFolder, state: State, panel: Panel, peers: AbstractPeers = ALONE) -> None:
    """Write everything that a resumed run needs to go on as if it had never been broken off.

    Of several processes the first one alone does, but for their parts of a spread model, which each writes.
    """
    is_spread = training.is_spread(state.model)
    if folder.is_scratch and not is_spread:
        return
    signal_tensors, signal_values = panel.pack(state.signals)
    tps_tensors, tps_values = state.regulariser.state() if state.regulariser else ({}, {})
    optimizer = {
        f"{name}/{key}": tensor
        for name, moments in training.state_by_name(state.optimizer, state.trained).items()
        for key, tensor in moments.items()
    }
    rooms: dict[str, Mapping[str, Tensor]] = {
        "model": state.model.state_dict(),
        "adapter": {} if state.adapter is None else state.adapter.state_dict(),
        "optimizer": optimizer,
        "signals": signal_tensors,
        "tps": tps_tensors,
        "random": training.random_state(),
    }
    same = {name: getattr(state, name) for name in _UNCHANGED}
    saved = Saved(**same, signals=dict(signal_values), tps=dict(tps_values), cut=state.pruning)
    tensors = {f"{room}:{name}": tensor for room, part in rooms.items() for name, tensor in part.items()}
    metadata = {"state": json.dumps(dump(saved))}
    if not is_spread:
        save_tensors(_checkpoint(folder), tensors, metadata)
        return
    parts = {name: tensor for name, tensor in tensors.items() if hasattr(tensor, "full_tensor")}
    again = {f"model:{name}" for name in training.tied_names(state.model)}
    slot = write_parts(folder, {name: parts[name] for name in parts if name not in again}, peers)
    if peers.is_first:
        common = {name: tensor for name, tensor in tensors.items() if name not in parts}
        save_tensors(common_of(folder, slot), common, metadata)
        set_current(folder, slot)


def load_checkpoint(folder: RunFolder) -> Restored | None:
    """Read a run's checkpoint, ``None`` where it was broken off before it wrote one; forget what came after.

    Readings and decisions journalled after the checkpoint are dropped: they will be made again, bit
    for bit. Energy windows are kept: what was spent was spent.

    Raises:
        RunFolderError: it is damaged, or was written by another version of this program.
    """
    slot = read_slot(folder)
    path = _checkpoint(folder) if slot is None else common_of(folder, slot)
    if not path.exists():
        _truncate(folder, (0, 0))
        return None
    try:
        tensors, metadata = load_tensors(path)
    except ArtifactError as error:
        raise RunFolderError(f"{error}; the run cannot go on from it: start again with --again") from error
    try:
        raw = strict_json(metadata.get("state", "{}").encode())
        found = raw.get("schema") if isinstance(raw, dict) else None
        if found != Saved.SCHEMA:
            raise RunFolderError(
                f"{path} is a checkpoint of schema {found!r}; this version reads {Saved.SCHEMA!r}: "
                "finish the run with the version that began it, or start again with --again"
            )
        saved = load(Saved, raw)
    except ValueError as error:
        raise RunFolderError(
            f"{path} is damaged: {error}; the run cannot go on from it: start again with --again"
        ) from error
    _truncate(folder, saved.lines)
    return Restored(path, tensors, saved, None if slot is None else parts_of(folder, slot))


def save_snapshot(folder: RunFolder, weights: Mapping[str, Tensor]) -> None:
    """Keep a model's weights for a later rewind."""
    save_tensors(_snapshot(folder), weights, {})


def has_snapshot(folder: RunFolder) -> bool:
    """Return whether weights for a rewind have been kept."""
    return _snapshot(folder).is_file()


def load_snapshot(folder: RunFolder, model: nn.Module) -> None:
    """Fill ``model`` with the weights kept for a rewind."""
    model.load_state_dict(load_tensors(_snapshot(folder), shapes_of(model.state_dict()))[0])


def _checkpoint(folder: RunFolder) -> Path:
    return folder.state / "checkpoint.safetensors"


def _snapshot(folder: RunFolder) -> Path:
    return folder.state / "rewind.safetensors"


def _truncate(folder: RunFolder, lines: tuple[int, int]) -> None:
    for journal, kept in zip((folder.readings, folder.decisions), lines, strict=True):
        numbers = count()
        journal.truncate_to(lambda _, numbers=numbers, kept=kept: next(numbers) < kept)  # type: ignore[misc]
