"""A model as one graph from inputs to scores, for batches of any size."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tpsprune.errors import ArtifactError
from tpsprune.numerics.forward import call_model, evaluation_mode, logits_of

__all__ = ["Answers", "answers_of", "capture", "leaves_of", "names_of", "plain_kernels", "words_of"]

Answers = Callable[[Any], Tensor]
"""From a batch (a tensor, a tuple or a mapping of them) to its scores, on the CPU."""

MOST_WORDS: Final = 300
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")
_LEFT_OUT: Final = ("stack_trace", "from_node")
"""Where in whose files a node comes from: nothing of it is needed, and it differs from machine to machine."""


@final
class _Scores(nn.Module):
    """The model as it is called everywhere: one argument in, the tensor of scores out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Tensor:
        return logits_of(call_model(self.model, inputs))


def answers_of(model: nn.Module) -> Answers:
    """Return how a model answers a batch, in evaluation mode and without a trace for gradients."""

    def answer(batch: Any) -> Tensor:
        with torch.inference_mode(), plain_kernels(), evaluation_mode(model):
            return logits_of(call_model(model, batch)).cpu()

    return answer


def capture(model: nn.Module, example: Any, format: str) -> ExportedProgram:  # noqa: A002
    """Capture ``model`` with ``torch.export``, its batch left open; it takes one argument, as ``example`` is.

    The answer of the program is the tensor of scores alone, whatever else the model returns. Paths of
    source files are left out, so that the same model gives the same program wherever it is captured.

    Args:
        model: in evaluation mode; it is not changed.
        example: a batch of at least two items; every tensor in it has the batch as its first axis.
        format: for the message.

    Raises:
        ArtifactError: the model cannot be captured, or only for batches of one size.
    """
    batch = Dim("batch", min=1)
    shapes = _like(example, lambda _: {0: batch})
    try:
        with torch.no_grad(), plain_kernels(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(_Scores(model), (example,), dynamic_shapes=(shapes,))
    except Exception as error:  # the model's own code runs here, and may raise anything
        raise ArtifactError(
            f"{format}: torch.export cannot capture the ticket for batches of any size: {words_of(error)}"
        ) from error
    # torch would pickle the example into the file.
    program.example_inputs = None
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for name in _LEFT_OUT:
                    node.meta.pop(name, None)
    return program


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Keep attention modules of torch off their fused path, which no captured program can take."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def words_of(error: BaseException) -> str:
    """Return the beginning of what an error's first cause has to say, on one line, without colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    return _COLOURS.sub("", " ".join(str(error).split()))[:MOST_WORDS] or type(error).__name__


def leaves_of(batch: Any) -> list[Tensor]:
    """Return the tensors of a batch in order."""
    if isinstance(batch, Mapping):
        return list(batch.values())
    return list(batch) if isinstance(batch, tuple) else [batch]


def names_of(batch: Any) -> list[str]:
    """Return a name for each tensor of a batch: its own in a mapping, a number in a tuple."""
    if isinstance(batch, Mapping):
        return [str(name) for name in batch]
    return [f"input_{place}" for place in range(len(batch))] if isinstance(batch, tuple) else ["input"]


def _like(batch: Any, make: Callable[[Tensor], Any]) -> Any:
    if isinstance(batch, Mapping):
        return {name: make(tensor) for name, tensor in batch.items()}
    return tuple(make(tensor) for tensor in batch) if isinstance(batch, tuple) else make(batch)
