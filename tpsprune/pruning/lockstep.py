"""Two models of one shape traversed in lock step: all batches stop at a layer before any goes on.

What a layer is fed by the model as pruned so far is known only when every layer before it is settled. In lock
step both models need one forward pass in all, and not one for each layer that is settled. Each batch of each
model is a greenlet: threads gave the same tickets, but took 3 to 40 % more processor time and 4 to 19 % more
memory with 64 batches, and each thread starts OpenMP threads of its own (1,040 in all where there were 16).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn

from tpsprune.numerics.forward import call_model, first_input, observe_inputs

CASTING: Final = ("cpu", "cuda")


@dataclass(frozen=True, slots=True, eq=False)
class Fed:
    """What one batch brings to a layer: its inputs in the dense and the pruned model, the dense output.

    ``output`` is missing where that layer was not called yet, or returns something else than a tensor.
    """

    dense: Tensor
    pruned: Tensor
    output: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Stop:
    """A layer about to be called in the pruned model, and what it is fed, batch by batch.

    The inputs are dropped when the traversal goes on: nothing is held for longer than a layer.
    """

    module: str
    fed: list[Fed]


def traverse_in_step(
    dense: nn.Module, pruned: nn.Module, batches: Sequence[Any], names: Iterable[str]
) -> Generator[Stop, None, None]:
    """Yield a stop for each named layer, in the order in which the forward pass first calls them.

    Whatever the caller does to the layer, or to those that come after, before it asks for the next stop is
    what the traversal goes on with. Layers that are never called are left out, later calls of one layer do
    not stop, and a batch that does not come by is not among those of the stop. The dense model waits behind a
    layer, so that its output is had for nothing; before one that holds other layers, as the pruned one does.

    Each batch of each model is a coroutine: its Python frames are put aside while it waits, and so are the
    settings of autocast. Other state of the thread that a model changes while it runs is not.

    Args:
        dense: called in the mode it is in, without gradients.
        pruned: of the same layers; another object.
        batches: prepared, on the models' device.
        names: of layers.

    Cost: a forward pass of each model. Memory: what each batch has to hold at the stop.
    """
    names = list(names)
    passed: set[str] = set()
    walkers = [_Walker(model, batch) for batch in batches for model in (dense, pruned)]
    own = {walker.coroutine: walker for walker in walkers}
    main = getcurrent()

    def stop(name: str, fed: Tensor, output: Tensor | None = None) -> None:
        walker = own.get(getcurrent())
        if walker is not None and name not in passed:
            walker.at, walker.fed, walker.output = name, fed, output
            main.switch()
            walker.fed = walker.output = None

    leaves = {name for name in names if not any(dense.get_submodule(name).children())}
    with ExitStack() as stack:
        stack.enter_context(observe_inputs(pruned, names, stop))
        stack.enter_context(observe_inputs(dense, [name for name in names if name not in leaves], stop))
        stack.enter_context(_observe_outputs(dense, leaves, stop))
        for walker in walkers:
            stack.callback(walker.leave)
        for walker in walkers:
            walker.resume()
        while waiting := [walker for walker in walkers if walker.at is not None]:
            target = waiting[0].at
            assert target is not None
            pairs = zip(walkers[::2], walkers[1::2], strict=True)
            here = Stop(target, [Fed(a.given, b.given, a.output) for a, b in pairs if a.at == b.at == target])
            yield here
            here.fed.clear()
            passed.add(target)
            for walker in waiting:
                if walker.at == target:
                    walker.resume()


def collect_all_calls(dense: nn.Module, pruned: nn.Module, batches: Iterable[Any], name: str) -> list[Fed]:
    """Return what a layer that is called several times in a pass is fed in all its calls."""
    inputs = ((_inputs_of(model, batch, name) for model in (dense, pruned)) for batch in batches)
    return [Fed(*pair) for both in inputs for pair in zip(*both, strict=False)]


def _inputs_of(model: nn.Module, batch: Any, name: str) -> list[Tensor]:
    fed: list[Tensor] = []
    with torch.no_grad(), observe_inputs(model, [name], lambda _, each: fed.append(each)):
        call_model(model, batch)
    return fed


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
                if (fed := first_input(args, kwargs)) is not None:
                    observe(name, fed, out.detach() if isinstance(out, Tensor) else None)

            handle = model.get_submodule(name).register_forward_hook(hook, with_kwargs=True, prepend=True)
            stack.callback(handle.remove)
        yield


@final
class _Walker:
    """One batch on its way through one model: ``at`` is where it waits, ``None`` once it is through."""

    def __init__(self, model: nn.Module, batch: Any) -> None:
        self.at: str | None = None
        self.fed: Tensor | None = None
        self.output: Tensor | None = None
        self.casts = _autocast()
        self.coroutine = greenlet(lambda: call_model(model, batch))

    @property
    def given(self) -> Tensor:
        """What the layer it waits at is called with."""
        assert self.fed is not None
        return self.fed

    def resume(self) -> None:
        self.at = self.fed = self.output = None
        ours = _autocast()
        _set_autocast(self.casts)
        try:
            with torch.no_grad():
                self.coroutine.switch()
        finally:
            self.casts = _autocast()
            _set_autocast(ours)

    def leave(self) -> None:
        if self.coroutine:
            self.coroutine.throw(GreenletExit)


def _autocast() -> tuple[tuple[str, bool, torch.dtype], ...]:
    return tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in CASTING)


def _set_autocast(state: tuple[tuple[str, bool, torch.dtype], ...]) -> None:
    for kind, enabled, dtype in state:
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)
