"""Two models of the same layers traversed in lock step: all batches stop at a layer before any continues.

A layer's inputs in the ticket exist only once every layer before it is settled. In lock step
both models need one forward pass in all, and not one for each layer that is settled. Each batch of each model
is a greenlet: threads gave the same tickets, but took 3 to 40 % more processor time and 4 to 19 % more memory
with 64 batches, and each thread starts OpenMP threads of its own (1,040 in all where there were 16).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn

from tpsprune.numerics.forward import (
    call_model,
    first_input,
    fixed_seed,
    observe_inputs,
    random_state,
    set_random_state,
)
from tpsprune.numerics.routing import Recorded, Route, routed

CASTING: Final = ("cpu", "cuda")


@dataclass(frozen=True, slots=True, eq=False)
class LayerBatch:
    """One batch at a layer: its inputs in the dense and the pruned model, and the dense output.

    ``output`` is missing where the dense layer was not called yet or returns something else than a tensor.
    """

    dense: Tensor
    pruned: Tensor
    output: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Stop:
    """A layer about to be called in the pruned model, with its inputs batch by batch.

    The inputs are dropped when the traversal continues: nothing is held for longer than a layer.
    """

    module: str
    batches: list[LayerBatch]


def traverse_in_step(
    dense: nn.Module, pruned: nn.Module, batches: Sequence[Any], names: Iterable[str]
) -> Generator[Stop, None, None]:
    """Yield a stop for each named layer, in the order in which the forward pass first calls them.

    The traversal continues with whatever the caller has made of the layer, or of later ones, before the next
    stop. Layers that are never called are left out, later calls of one layer do not stop, and a batch that
    does not pass the layer is not among those of the stop. The dense model waits behind a layer, so that its
    output costs nothing; before one that holds other layers, as the pruned one does. Experts of the pruned
    model see the tokens that those of the dense one saw.

    Each batch of each model is a coroutine: its Python frames are set aside while it waits, as are the
    settings of autocast and the states of the generators, so that both models draw the same random numbers.
    Other state of the thread that a model changes while it runs is not.

    Args:
        dense: called in the mode it is in, without gradients.
        pruned: of the same layers; another object.
        batches: prepared, on the models' device.
        names: of layers.

    Cost: a forward pass of each model. Memory: what each batch has to hold at the stop.
    """
    names = list(names)
    settled: set[str] = set()
    passes = []
    for batch in batches:
        tokens = Recorded()
        passes += [_Pass(dense, batch, tokens.lead), _Pass(pruned, batch, tokens.follow)]
    pass_of = {each.coroutine: each for each in passes}
    main = getcurrent()

    def stop(name: str, inputs: Tensor, output: Tensor | None = None) -> None:
        own = pass_of.get(getcurrent())
        if own is not None and name not in settled:
            own.at, own.inputs, own.output = name, inputs, output
            main.switch()
            own.inputs = own.output = None

    leaves = {name for name in names if not any(dense.get_submodule(name).children())}
    with ExitStack() as stack:
        stack.enter_context(observe_inputs(pruned, names, stop))
        stack.enter_context(observe_inputs(dense, [name for name in names if name not in leaves], stop))
        stack.enter_context(_observe_outputs(dense, leaves, stop))
        for each in passes:
            stack.callback(each.leave)
        for each in passes:
            each.resume()
        while waiting := [each for each in passes if each.at is not None]:
            target = waiting[0].at
            assert target is not None
            here = Stop(
                target,
                [
                    LayerBatch(a.inputs, b.inputs, a.output)
                    for a, b in zip(passes[::2], passes[1::2], strict=True)
                    if a.at == b.at == target and a.inputs is not None and b.inputs is not None
                ],
            )
            yield here
            here.batches.clear()
            settled.add(target)
            for each in waiting:
                if each.at == target:
                    each.resume()


def collect_all_calls(
    dense: nn.Module, pruned: nn.Module, batches: Iterable[Any], name: str
) -> list[LayerBatch]:
    """Return the inputs of all calls of a layer that is called several times in a pass."""
    found: list[LayerBatch] = []
    for batch in batches:
        tokens = Recorded()
        theirs = _inputs_of(dense, batch, name, tokens.lead)
        ours = _inputs_of(pruned, batch, name, tokens.follow)
        found += [LayerBatch(*pair) for pair in zip(theirs, ours, strict=False)]
    return found


def _inputs_of(model: nn.Module, batch: Any, name: str, route: Route) -> list[Tensor]:
    inputs: list[Tensor] = []
    noting = observe_inputs(model, [name], lambda _, each: inputs.append(each))
    with torch.no_grad(), fixed_seed(), routed(route), noting:
        call_model(model, batch)
    return inputs


@contextmanager
def _observe_outputs(
    model: nn.Module, names: Iterable[str], observe: Callable[[str, Tensor, Tensor | None], None]
) -> Iterator[None]:
    """Call ``observe(name, input, output)`` whenever a named layer has returned; the output if a tensor."""
    with ExitStack() as stack:
        for name in names:

            def hook(
                _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, name: str = name
            ) -> None:
                if (inputs := first_input(args, kwargs)) is not None:
                    observe(name, inputs, out.detach() if isinstance(out, Tensor) else None)

            handle = model.get_submodule(name).register_forward_hook(hook, with_kwargs=True, prepend=True)
            stack.callback(handle.remove)
        yield


@final
class _Pass:
    """The forward pass of one batch in one model: ``at`` is the layer where it waits, ``None`` at its end."""

    def __init__(self, model: nn.Module, batch: Any, route: Route) -> None:
        self.at: str | None = None
        self.inputs: Tensor | None = None
        self.output: Tensor | None = None
        self.casts = _autocast()
        with fixed_seed():
            self.drawn = random_state()

        def run() -> None:
            with routed(route):  # A coroutine has a context of its own.
                call_model(model, batch)

        self.coroutine = greenlet(run)

    def resume(self) -> None:
        self.at = self.inputs = self.output = None
        ours, drawn = _autocast(), random_state()
        _set_autocast(self.casts)
        set_random_state(self.drawn)
        try:
            with torch.no_grad():
                self.coroutine.switch()
        finally:
            self.casts = _autocast()
            _set_autocast(ours)
            self.drawn = random_state()
            set_random_state(drawn)

    def leave(self) -> None:
        if self.coroutine:
            self.coroutine.throw(GreenletExit)


def _autocast() -> tuple[tuple[str, bool, torch.dtype], ...]:
    return tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in CASTING)


def _set_autocast(state: tuple[tuple[str, bool, torch.dtype], ...]) -> None:
    for kind, enabled, dtype in state:
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)
