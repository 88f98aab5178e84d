"""Calibration data made up: what a language model writes, or noise matched to a model's batch norms.

For whoever has weights and no data. Shape letters: n items, r rows, c columns, l positions, v words.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tpsprune.errors import PruneError, first_line
from tpsprune.numerics.decoding import Reader, draw_words, is_language_model
from tpsprune.numerics.forward import call_model, evaluation_mode, first_input, fixed_seed
from tpsprune.numerics.random_networks import random_signals, random_words
from tpsprune.numerics.trees import item_count, map_tensors, take_items, tensors_of

FEW_WORDS: Final = 4
"""An embedding of no more reads kinds (of segments), which are taken as they are."""
MOST_ITEMS: Final = 512
MATCHED_AT_A_TIME: Final = 128
MOST_NUMBERS: Final = 2**22
"""In the floats of a part: 27 images of 3 × 224 × 224, whose activations take some three gigabytes."""
LEAST_AT_A_TIME: Final = 16
LEARNING_RATE: Final = 0.5
STEPS: Final = 120
"""Of a CNN on Fashion-MNIST at a half and a quarter of its operations (real data 0.913, 0.887): 60 steps at
0.1 left 0.896 and 0.837, at 0.3 0.900 and 0.852, 120 steps at 0.3 0.906 and 0.876."""


@dataclass(frozen=True, slots=True, eq=False)
class Synthetic:
    """Batches made up, and the mismatch with the batch norms before and after; none without batch norms.

    ``written``: the model is a language model, and the words are its own.
    """

    batches: tuple[Any, ...]
    mismatch_before: float | None
    mismatch_after: float | None
    seconds: float
    written: bool = False

    @property
    def note(self) -> str:
        """What the user should know, as a sentence."""
        made = "that the model wrote" if self.written else "made up"
        items = f"calibrated on {sum(map(item_count, self.batches))} items {made} in {self.seconds:.0f} s"
        if self.written:
            return f"{items}, no data used"
        if self.mismatch_before is None or self.mismatch_after is None:
            return f"{items}; there are no batch norms to match them to: real data would do much better"
        fell = f"{self.mismatch_before:.2g} to {self.mismatch_after:.2g}"
        return f"{items}, no data used; their mismatch with the model's batch norms fell from {fell}"


@fixed_seed()
def synthesize(
    model: nn.Module,
    like: Any,
    items: int = MOST_ITEMS,
    *,
    seed: int = 0,
    steps: int = STEPS,
    seconds: float = math.inf,
    own_words: bool = True,
) -> Synthetic:
    """Make up calibration data for a model, of which no item is read.

    A language model that takes words alone writes them: a first word at random, each other drawn from what
    the model gives those before. Else token ids are drawn word by word from a random LSTM
    (``random_words``). Of floats noise is passed through random LSTMs, whose outputs are correlated over
    neighbouring places as data are (``random_signals``). Where the model has batch norms the items are then
    moved by Adam until the moments of a batch at each of them are those that it was trained with: L = Σ_l
    mean((μ_l − m_l)²/v_l) + mean((s_l/√v_l − 1)²), μ, s² a batch's, m, v the running ones.

    Args:
        model: in either mode, not changed.
        like: a batch of inputs as the model takes them; of floats and token ids the shape counts alone.
            Other whole numbers (positions, kinds of segments) and truth values (masks) are taken as they are.
        items: how many.
        seed: equal seeds give equal items.
        steps: of Adam, for each part of 128 items, of large ones fewer.
        seconds: after so many no further part is matched; what was matched by then is kept.
        own_words: whether a language model writes; without, what is made up is foreign to it.

    Raises:
        PruneError: nothing in ``like`` can be made up, or the model does not take it.

    It sees: what a language model writes, batch norms, shapes, the number of words. It does not see what
    other items mean: another model without batch norms is calibrated on noise, which costs it points.

    Source: Williams et al. 2024, "Self-calibration for language model quantization and pruning", for what
    models write; Yin et al. 2020, "Dreaming to Distill" (DeepInversion), equation 4, for the batch norms;
    Bloem 2025, "Universal pre-training by iterated random computation", for the random networks.

    Cost: a forward and backward pass for each item and step of a model with batch norms; of a language model
    a forward pass of each place where it keeps what it has read, as transformers do, else of all before it.
    """
    generator, begun = torch.Generator().manual_seed(seed), time.monotonic()
    _check_example(model, like)
    numbers = sum(each[0].numel() for each in tensors_of(like) if each.is_floating_point() and each.ndim)
    at_a_time = min(MATCHED_AT_A_TIME, max(LEAST_AT_A_TIME, MOST_NUMBERS // max(1, numbers)))
    count = math.ceil(items / at_a_time)
    lengths = [len(part) for part in torch.arange(items).tensor_split(count)]
    written = own_words and _writes(model, like)
    parts = [_invent(model, like, length, generator, written=written) for length in lengths]
    norms = _reached_norms(model, parts[0])
    if not norms:
        return Synthetic(tuple(parts), None, None, time.monotonic() - begun, written)
    before = after = 0.0
    for rank, (part, length) in enumerate(zip(parts, lengths, strict=True)):
        matched = match_norms(model, part, norms, steps if time.monotonic() - begun < seconds else 0)
        parts[rank] = matched.batch
        before += matched.before * length / items
        after += matched.after * length / items
    return Synthetic(tuple(parts), before, after, time.monotonic() - begun)


def _check_example(model: nn.Module, like: Any) -> None:
    """Refuse a batch that the model does not take.

    Raises:
        PruneError: says what happened.
    """
    if item_count(like) < 1:
        raise PruneError("the example of synthetic calibration data holds no item; one is enough")
    try:
        with torch.no_grad(), evaluation_mode(model):
            call_model(model, like)
    except Exception as error:  # the model's own code runs here, and may raise anything
        raise PruneError(
            f"the model does not take the example of synthetic calibration data: {first_line(error)}"
        ) from error


def _reached_norms(model: nn.Module, batch: Any) -> list[_BatchNorm]:
    """Return the batch norms with running moments that a pass calls, and on which floats of the batch act."""
    candidates = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    floats = [each for each in tensors_of(batch) if each.is_floating_point()]
    if not candidates or not floats:
        return []
    moved = {id(each): each.detach().clone().requires_grad_() for each in floats}
    found: list[_BatchNorm] = []

    def note(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if isinstance(norm, _BatchNorm) and _attached(args, kwargs).requires_grad:
            found.append(norm)

    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(_frozen(model))
        for norm in candidates:
            stack.callback(norm.register_forward_pre_hook(note, with_kwargs=True).remove)
        call_model(model, map_tensors(batch, lambda each: moved.get(id(each), each).clone()))
    return list(dict.fromkeys(found))


def _attached(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the tensor that a norm is called with, in its graph."""
    given: Tensor = next(iter((*args, *kwargs.values())))
    return given


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Let no parameter take a gradient meanwhile."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _writes(model: nn.Module, like: Any) -> bool:
    """Return whether a model is a language model of the one tensor of words in a batch, without floats."""
    words = _words_of(model, like)
    read = [each for each in tensors_of(like) if each.data_ptr() in words]
    if len(read) != 1 or any(each.is_floating_point() for each in tensors_of(like)):
        return False
    with evaluation_mode(model):
        return is_language_model(model, read[0][:2], words[read[0].data_ptr()])


def _invent(model: nn.Module, like: Any, count: int, generator: torch.Generator, *, written: bool) -> Any:
    """Return as many items as are asked for, of the shapes of a batch."""
    some = take_items(like, torch.arange(count) % item_count(like))
    words = _words_of(model, some)
    invented = 0

    def invent(tensor: Tensor) -> Tensor:
        nonlocal invented
        if tensor.is_floating_point():
            made = random_signals(tuple(tensor.shape), generator)
        elif (vocabulary := words.get(tensor.data_ptr(), 0)) > FEW_WORDS and not _are_positions(tensor):
            made = (
                _write(model, vocabulary, tensor, generator)
                if written
                else random_words(vocabulary, tuple(tensor.shape), generator)
            )
        else:
            return tensor
        invented += 1
        return made.to(tensor)

    found = map_tensors(some, invent)
    if not invented:
        raise PruneError("the example holds neither floats nor ids that an embedding reads as they are")
    return found


@torch.no_grad()
def _write(model: nn.Module, vocabulary: int, like_nl: Tensor, generator: torch.Generator) -> Tensor:
    """Return words that a language model goes on with after a first one at random, in a shape and place."""
    first_n1 = torch.randint(vocabulary, (len(like_nl), 1), generator=generator).to(like_nl.device)
    with evaluation_mode(model):
        return draw_words(Reader(model).read, first_n1, like_nl.shape[1], generator)


def _are_positions(ids: Tensor) -> bool:
    """Return whether every item counts its places."""
    return ids.dim() > 1 and bool((ids == torch.arange(ids.shape[-1], device=ids.device)).all())


def _words_of(model: nn.Module, batch: Any) -> dict[int, int]:
    """Return by address of a tensor how many words the embedding knows that reads it."""
    whole = (torch.int64, torch.int32, torch.int16)
    ids = {each.data_ptr() for each in tensors_of(batch) if each.dtype in whole}
    found: dict[int, int] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert isinstance(module, nn.Embedding)
        inputs = first_input(args, kwargs)
        if inputs is not None and inputs.data_ptr() in ids:
            found.setdefault(inputs.data_ptr(), module.num_embeddings)

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        with torch.no_grad(), evaluation_mode(model):
            call_model(model, batch)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Matched:
    """A batch moved towards batch norms, and the mismatch before and after."""

    batch: Any
    before: float
    after: float


def match_norms(model: nn.Module, batch: Any, norms: Sequence[_BatchNorm], steps: int) -> Matched:
    """Move the floats of a batch until each norm sees the moments that it was trained with."""
    flat = [each for each in tensors_of(batch) if each.is_floating_point()]
    moved = [each.detach().float().clone().requires_grad_() for each in flat]

    def filled(values: Sequence[Tensor]) -> Any:
        of = {id(old): new for old, new in zip(flat, values, strict=True)}
        # A clone: what a model does to its inputs in place is done to no leaf.
        return map_tensors(batch, lambda old: of.get(id(old), old).to(old.dtype).clone())

    optimizer = torch.optim.Adam(moved, LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    losses: list[float] = []
    best = [each.detach().clone() for each in moved]
    with torch.enable_grad(), evaluation_mode(model), _frozen(model), _mismatches(norms) as mismatches:
        for step in range(steps + 1):
            mismatches.clear()
            call_model(model, filled(moved))
            loss = torch.stack(mismatches).sum()
            losses.append(float(loss.detach()))
            if losses[-1] == min(losses):
                best = [each.detach().clone() for each in moved]
            if step == steps:
                break
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    if not math.isfinite(losses[0]):
        raise PruneError(
            "the model's batch norms see items made up that are not finite: its weights may not be"
        )
    return Matched(filled(best), losses[0], min(losses))


@contextmanager
def _mismatches(norms: Sequence[_BatchNorm]) -> Iterator[list[Tensor]]:
    """Give what every call of a norm adds: how far the moments of its inputs are from the running ones."""
    found: list[Tensor] = []

    def note(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert isinstance(norm, _BatchNorm)
        inputs = _attached(args, kwargs).float()
        others = [axis for axis in range(inputs.dim()) if axis != 1]
        mean_c, variance_c = inputs.mean(others), inputs.var(others, unbiased=False)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        run_c = norm.running_var.float() + norm.eps
        shift_c = (mean_c - norm.running_mean.float()).square() / run_c
        found.append(shift_c.mean() + ((variance_c / run_c).add(1e-8).sqrt() - 1).square().mean())

    with ExitStack() as stack:
        for norm in norms:
            stack.callback(norm.register_forward_pre_hook(note, with_kwargs=True).remove)
        yield found
