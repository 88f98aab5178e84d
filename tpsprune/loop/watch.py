"""``Watch``: signals and rules in a training loop of one's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, Final, Self, final

import torch
from torch import Tensor, nn

from tpsprune import stopping
from tpsprune.errors import Fault, LoopError, RecipeError, did_you_mean
from tpsprune.loop.bare import bare, device_of
from tpsprune.loop.probe import probe_of, sites_of
from tpsprune.loop.stored import refuse_foreign, refuse_other, refuse_part
from tpsprune.loop.watched_rules import chance_for, faults_of_rules
from tpsprune.recipe.schema import watched_names
from tpsprune.recipe.settings import read_rule, read_section
from tpsprune.recipe.stop import Rule
from tpsprune.recipe.train import Signal
from tpsprune.recipe.train import Watch as Settings
from tpsprune.records import Decision, Reading
from tpsprune.signals import Panel, View

__all__ = ["Watch"]

SCHEMA: Final = "tpsprune.watch/1"
KINDS: Final = {"draw": "draw", "end": "stop"}
"""What a rule of ``[stop]`` decides, as journals have it."""


@final
class Watch:
    """Reads signals of a model while it trains, and says after each reading whether a rule would act.

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
    >>> rule = tpsprune.Plateau(signal="norm", tolerance=0.05, patience=3, learned_share=0.0)
    >>> with tpsprune.Watch(model, x, signals=["d_eff", "norm"], every_steps=10, draw=rule) as watch:
    ...     for step in range(1, 101):
    ...         torch.nn.functional.cross_entropy(model(x), y).backward()
    ...         optimizer.step()
    ...         optimizer.zero_grad()
    ...         if any(verdict.act for verdict in watch.step(step)):
    ...             break
    >>> step, 0 < watch["d_eff"] <= 1
    (30, True)

    Signals are those of a recipe's ``[watch]``; loops (``h1``) are counted in a process of its own, which
    leaving the ``with`` block, or ``close``, ends, and come one reading late. The model is left as it was,
    its mode too. Rules are the values ``Plateau``, ``Patience``, ``Threshold``, ``Mask``, ``Change``,
    ``Reopen``, ``Consensus`` and ``AtEpoch``, or the words of a recipe as a mapping.

    Does not see what is computed elsewhere: hand it to ``step`` by name. Cost: that of the signals, a few
    forward passes over the probe at each reading.

    Args:
        model: what trains; wrapped or not. After a cut, make another watch for the ticket.
        probe: what the signals look at, some 256 training items prepared as for evaluation. A tensor is all
            items at once; a list or loader yields batches, a batch that is a *list* being inputs and, last,
            labels.
        labels: one tensor a batch, or one tensor for a probe that is one tensor; only ``commutator_defect``
            looks at them. Those of list batches are found.
        signals: which are read; none are fine where rules look at values handed in alone.
        every_steps: steps between two readings.
        draw: when to draw the ticket.
        end: when training is over.
        chance_accuracy: what guessing scores, for rules with a ``learned_share``; one over the model's scores
            without it.
        leave_alone: modules whose units are no group, as in a recipe's ``[prune]``.
        seed: of landmarks, null draws and sketches.
        settings: the other fields of ``[watch]``: ``h1_points``, ``h1_every``, ``edge_window``,
            ``rank_share``.

    Raises:
        RecipeError: a setting or a rule is not known or out of bounds; every fault, with what would do.
        DataError: the probe is no batches or lacks items, the labels given are not one an item, or the model
            does not take the probe.
        ModelError: the model is sharded over processes.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Any,
        labels: Tensor | Sequence[Tensor] | None = None,
        *,
        signals: Sequence[Signal] = ("d_eff", "h1", "spectral_edge", "norm"),
        every_steps: int = 100,
        draw: Rule | Mapping[str, Any] | None = None,
        end: Rule | Mapping[str, Any] | None = None,
        chance_accuracy: float | None = None,
        leave_alone: Sequence[str] = (),
        seed: int = 0,
        **settings: Any,
    ) -> None:
        asked = {"signals": list(signals), "every_steps": every_steps, **settings}
        of_recipes = {"probe_items": "the probe says it", "every_epochs": "every_steps would do"}
        if faults := [
            Fault(name, f"is for recipes; here {why}") for name, why in of_recipes.items() if name in asked
        ]:
            raise RecipeError("Watch", faults)
        self._settings = read_section(Settings, "watch", asked, "Watch")
        if doubled := sorted({name for name in signals if list(signals).count(name) > 1}):
            words = f"names {', '.join(map(repr, doubled))} more than once"
            raise RecipeError("Watch", [Fault("signals", words)])
        given = {"draw": draw, "end": end}
        self._rules = {
            name: read_rule(rule, name, "Watch") for name, rule in given.items() if rule is not None
        }
        self.every_steps = every_steps
        """Steps between two readings."""
        self._model = bare(model)
        self._probe, self._labels = probe_of(probe, labels, device_of(self._model))
        self._sites = sites_of(self._model, self._probe[0], self._settings.signals, leave_alone)
        self._memory = {
            name: stopping.start(
                rule, chance_accuracy=chance_for(rule, chance_accuracy, self._model, self._probe[0])
            )
            for name, rule in self._rules.items()
        }
        self._last_step: int | None = None
        self._is_checked = self._is_closed = False
        self.readings: list[Reading] = []
        """Every reading so far, in the order in which they came."""
        self._panel = Panel.of(self._settings, seed)
        self._memories = self._panel.start()

    def step(
        self,
        step: int,
        *,
        epoch: float | None = None,
        readings: Iterable[Reading] = (),
        **values: float | Tensor | Callable[[], float | Tensor],
    ) -> tuple[Decision, ...]:
        """Read where it is the turn of ``step``, and return what each rule says; nothing between readings.

        Nothing either where ``step`` is that of the last call, which was read then if it was its turn.
        ``values`` are read beside the signals under their names, as in ``validation_accuracy=0.9``; what is
        dear is handed in as a function without arguments, which is called only for a reading.
        ``readings`` are taken as they are, as those of ``TPS.order_parameters``; an iterator is gone through
        for a reading only.

        Raises:
            LoopError: steps go down, or the watch is closed.
            RecipeError: at the first reading, where a rule looks at what is not read.
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
        told = tuple(
            Reading.of(name, float(value() if callable(value) else value), step=step, epoch=at)
            for name, value in values.items()
        )
        with torch.autocast(device_of(self._model).type, enabled=False):
            self._memories, seen = self._panel.read(self._memories, self._view(step, at))
        now = (*told, *more, *seen)
        self.readings.extend(now)
        self._last_step = step
        return tuple(
            self._decided(name, rule, now, step=step, epoch=at) for name, rule in self._rules.items()
        )

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
        """Return what a checkpoint must hold: tensors, and plain JSON values."""
        tensors, signals = self._panel.pack(self._memories)
        plain = {
            "settings": self._described(),
            "last_step": self._last_step,
            "signals": signals,
            "rules": {name: dict(memory) for name, memory in self._memory.items()},
            "readings": [reading.to_json() for reading in self.readings],
        }
        # By way of JSON, so that it is what it says: a word of ours is a class of ours to pickle.
        return {"schema": SCHEMA, "tensors": tensors, "plain": json.loads(json.dumps(plain))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state_dict`` returned, into a watch with the same signals and rules.

        Raises:
            LoopError: it is no state of a watch, lacks something, or is of one with other settings: names the
                first.
        """
        refuse_foreign("Watch", state, SCHEMA)
        refuse_part("Watch", state, ("tensors", "plain"))
        plain = state["plain"]
        refuse_part("Watch", plain, ("settings", "last_step", "signals", "rules", "readings"))
        refuse_other("Watch", plain["settings"], self._described())
        refuse_part("Watch", plain["signals"], self._settings.signals)
        refuse_part("Watch", plain["rules"], self._rules)
        self._memories = self._panel.unpack(state["tensors"], plain["signals"])
        self._memory = dict(plain["rules"])
        self._last_step = plain["last_step"]
        self.readings = [Reading.from_json(raw) for raw in plain["readings"]]

    def close(self) -> None:
        """Collect what is still on its way into ``readings`` and end the process that counts loops."""
        if not self._is_closed:
            self._is_closed = True
            try:
                self._memories, late = self._panel.finish(self._memories)
                self.readings.extend(late)
            finally:
                self._panel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._is_closed = True
            self._panel.close()

    def _view(self, step: int, epoch: float) -> View:
        return View(
            model=self._model,
            probe=tuple(self._probe),
            step=step,
            epoch=epoch,
            consumers=self._sites.consumers,
            written=self._sites.written,
            scaled=self._sites.scaled,
            labels=tuple(self._labels),
        )

    def _refuse_unread(self, names: Sequence[str], values: Mapping[str, Any], epoch: float | None) -> None:
        if self._is_checked:
            return
        taken = set(watched_names(self._settings.signals)).intersection(values)
        faults = [Fault(name, "is read by a signal already: hand it in under another name") for name in taken]
        for name, rule in self._rules.items():
            faults += faults_of_rules(name, rule, names, has_epoch=epoch is not None)
        if faults:
            raise RecipeError("Watch", faults)
        self._is_checked = True

    def _decided(
        self, name: str, rule: Rule, readings: Sequence[Reading], *, step: int, epoch: float
    ) -> Decision:
        self._memory[name], verdict = stopping.step(rule, self._memory[name], readings)
        return Decision(
            kind=KINDS[name],
            act=verdict.act,
            step=step,
            epoch=epoch,
            rule=stopping.describe(rule),
            reason=verdict.reason,
        )

    def _described(self) -> dict[str, Any]:
        settings = {**asdict(self._settings), "signals": list(self._settings.signals)}
        return {**settings, **{name: stopping.describe(rule) for name, rule in self._rules.items()}}
