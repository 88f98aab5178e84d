"""Two models of one shape, walked side by side: all batches stop at a layer before any goes on.

What a layer is fed by the model as cut so far is known only when every layer before it is settled. Walked
in step, both models need one forward pass in all, and not one for each layer that is settled.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn

from tpsprune.numerics.forward import call_model

CASTING: Final = ("cpu", "cuda")

__all__ = ["Fed", "Stop", "fed_in_full", "first_input", "hooked", "side_by_side"]


@dataclass(frozen=True, slots=True, eq=False)
class Fed:
    """What one batch brings to a layer: in the dense model, in the cut one, and what the dense layer says.

    ``said`` is missing where that layer was not called yet, or says something else than a tensor.
    """

    dense: Tensor
    cut: Tensor
    said: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Stop:
    """A layer about to be called in the cut model, and what it is fed, batch by batch.

    The walk lets go of what was fed when it goes on: nothing is held for longer than a layer.
    """

    module: str
    fed: list[Fed]


def side_by_side(
    dense: nn.Module, cut: nn.Module, batches: Sequence[Any], names: Iterable[str]
) -> Generator[Stop, None, None]:
    """Yield a stop for each named layer, in the order in which the forward pass first calls them.

    Whatever the caller does to the layer, or to those that come after, before it asks for the next stop is
    what the walk goes on with. Layers that are never called are left out, later calls of one layer do not
    stop, and a batch that does not come by is not among those of the stop. The dense model waits behind a
    layer, so that its answer is had for nothing; before one that holds other layers, as the cut one does.

    Each batch of each model is a coroutine: its Python frames are put aside while it waits, and so is what
    autocast was set to. Other state of the thread that a model changes while it runs is not.

    Args:
        dense: called in the mode it is in, without gradients.
        cut: of the same layers; another object.
        batches: prepared, on the models' device.
        names: of layers.

    Cost: a forward pass of each model. Memory: what each batch has to hold at the stop.
    """
    names = list(names)
    passed: set[str] = set()
    walkers = [_Walker(model, batch) for batch in batches for model in (dense, cut)]
    own = {walker.coroutine: walker for walker in walkers}
    main = getcurrent()

    def stop(name: str, fed: Tensor, said: Tensor | None = None) -> None:
        walker = own.get(getcurrent())
        if walker is not None and name not in passed:
            walker.at, walker.fed, walker.said = name, fed, said
            main.switch()
            walker.fed = walker.said = None

    leaves = {name for name in names if not any(dense.get_submodule(name).children())}
    with ExitStack() as stack:
        stack.enter_context(hooked(cut, names, stop))
        stack.enter_context(hooked(dense, [name for name in names if name not in leaves], stop))
        stack.enter_context(_answered(dense, leaves, stop))
        for walker in walkers:
            stack.callback(walker.leave)
        for walker in walkers:
            walker.resume()
        while waiting := [walker for walker in walkers if walker.at is not None]:
            target = waiting[0].at
            assert target is not None
            pairs = zip(walkers[::2], walkers[1::2], strict=True)
            stop_here = Stop(
                target, [Fed(a.given, b.given, a.said) for a, b in pairs if a.at == b.at == target]
            )
            yield stop_here
            stop_here.fed.clear()
            passed.add(target)
            for walker in waiting:
                if walker.at == target:
                    walker.resume()


def fed_in_full(dense: nn.Module, cut: nn.Module, batches: Iterable[Any], name: str) -> list[Fed]:
    """Return what a layer that is called several times in a pass is fed in all its calls."""
    pairs: list[Fed] = []
    for batch in batches:
        both: list[list[Tensor]] = []
        for model in (dense, cut):
            fed: list[Tensor] = []
            with torch.no_grad(), hooked(model, [name], lambda _, given, fed=fed: fed.append(given)):
                call_model(model, batch)
            both.append(fed)
        pairs += map(Fed, *both)
    return pairs


@contextmanager
def hooked(model: nn.Module, names: Iterable[str], seen: Any) -> Iterator[None]:
    """Call ``seen(name, input)`` whenever a named layer is about to be called."""
    with ExitStack() as stack:
        for name in names:

            def tell(
                _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name
            ) -> None:
                if (given := first_input(args, kwargs)) is not None:
                    seen(name, given)

            handle = model.get_submodule(name).register_forward_pre_hook(tell, with_kwargs=True)
            stack.callback(handle.remove)
        yield


@contextmanager
def _answered(model: nn.Module, names: Iterable[str], seen: Any) -> Iterator[None]:
    """Call ``seen(name, input, output)`` whenever a named layer answered; the output if a tensor."""
    with ExitStack() as stack:
        for name in names:

            def tell(
                _module: nn.Module,
                args: tuple[Any, ...],
                kwargs: dict[str, Any],
                said: Any,
                name: str = name,
            ) -> None:
                if (given := first_input(args, kwargs)) is not None:
                    seen(name, given, said.detach() if isinstance(said, Tensor) else None)

            handle = model.get_submodule(name).register_forward_hook(tell, with_kwargs=True, prepend=True)
            stack.callback(handle.remove)
        yield


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the first tensor that a layer is called with, by position or by name; none if it is empty."""
    given = next(iter((*args, *kwargs.values())), None)
    holds = isinstance(given, Tensor) and given.ndim and given.numel()
    return given.detach() if isinstance(given, Tensor) and holds else None


@final
class _Walker:
    """One batch on its way through one model: ``at`` is where it waits, ``None`` once it is through."""

    def __init__(self, model: nn.Module, batch: Any) -> None:
        self.at: str | None = None
        self.fed: Tensor | None = None
        self.said: Tensor | None = None
        self.casts = _autocast()
        self.coroutine = greenlet(self._walk)
        self._model, self._batch = model, batch

    @property
    def given(self) -> Tensor:
        """What the layer it waits at is called with."""
        assert self.fed is not None
        return self.fed

    def resume(self) -> None:
        self.at = self.fed = self.said = None
        ours = _autocast()
        _set_autocast(self.casts)
        try:
            with torch.no_grad():
                self.coroutine.switch()
        finally:
            self.casts = _autocast()
            _set_autocast(ours)

    def _walk(self) -> None:
        call_model(self._model, self._batch)

    def leave(self) -> None:
        if self.coroutine:
            self.coroutine.throw(GreenletExit)


def _autocast() -> tuple[tuple[str, bool, torch.dtype], ...]:
    return tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in CASTING)


def _set_autocast(state: tuple[tuple[str, bool, torch.dtype], ...]) -> None:
    for kind, enabled, dtype in state:
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)
