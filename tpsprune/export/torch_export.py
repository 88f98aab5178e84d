"""A model as one graph from inputs to scores, for batches of any size; format ``torch-export`` is that graph.

Such a program is torch's own and needs no tpsprune to run. ``torch.export.load`` unpickles whatever a file
holds as a pickle, loads compiled code that lies in it, and evaluates the expressions of its sizes: **a file
of somebody else can run code**. The files written here hold neither pickles nor compiled code: weights are
raw bytes, the graph is JSON, and the example inputs, which torch would pickle, are left out. That much is
seen without loading a file, and is checked before one is loaded.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, ClassVar, Final, cast, final

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tpsprune.errors import ArtifactError
from tpsprune.numerics.forward import call_model, evaluation_mode, logits_of
from tpsprune.numerics.trees import map_tensors
from tpsprune.runs import writing

Predictor = Callable[[Any], Tensor]
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


def predictor_of(model: nn.Module) -> Predictor:
    """Return the function from a batch to a model's scores, in evaluation mode and without gradients."""

    def predict(batch: Any) -> Tensor:
        with torch.inference_mode(), plain_kernels(), evaluation_mode(model):
            return logits_of(call_model(model, batch)).cpu()

    return predict


def capture(model: nn.Module, example: Any, format: str) -> ExportedProgram:  # noqa: A002
    """Capture ``model`` with ``torch.export``, its batch left open; it takes one argument, as ``example`` is.

    The output of the program is the tensor of scores alone, whatever else the model returns. Paths of
    source files are left out, so that the same model gives the same program wherever it is captured.

    Args:
        model: in evaluation mode; it is not changed.
        example: a batch of at least two items; every tensor in it has the batch as its first axis.
        format: for the message.

    Raises:
        ArtifactError: the model cannot be captured, or only for batches of one size.
    """
    batch = Dim("batch", min=1)
    shapes = map_tensors(example, lambda _: {0: batch})  # type: ignore[arg-type,return-value]
    try:
        with torch.no_grad(), plain_kernels(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(_Scores(model), (example,), dynamic_shapes=(shapes,))
    except Exception as error:  # the model's own code runs here, and may raise anything
        raise ArtifactError(
            f"{format}: torch.export cannot capture the ticket for batches of any size: {first_cause(error)}"
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


def first_cause(error: BaseException) -> str:
    """Return the beginning of the message of an error's first cause, on one line, without colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    return _COLOURS.sub("", " ".join(str(error).split()))[:MOST_WORDS] or type(error).__name__


def names_of(batch: Any) -> list[str]:
    """Return a name for each tensor of a batch: its own in a mapping, a number in a tuple."""
    if isinstance(batch, Mapping):
        return [str(name) for name in batch]
    return [f"input_{place}" for place in range(len(batch))] if isinstance(batch, tuple) else ["input"]


PROGRAM: Final = "ticket.pt2"
_PLAIN: Final = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|version|\.data/\w+|\.\w+|models/model\.json"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+"
    r"|data/(weights|constants)/model_(weights|constants)_config\.json)"
)
"""Records of an archive that hold text or raw numbers; all others are read in ways of their own."""


@final
class TorchExport:
    """``ticket.pt2``, batch left open. It runs the very kernels that the ticket runs: equal to the bit."""

    name: ClassVar[str] = "torch-export"
    tolerance_share: ClassVar[float] = 0.0

    def refuse(self, model: nn.Module) -> None:
        """Refuse nothing: whether a model can be captured shows when it is."""

    def write(self, folder: Path, model: nn.Module, example: Any) -> tuple[str, ...]:
        """Capture the model and write the program.

        Raises:
            ArtifactError: the model cannot be captured, or torch would pickle some of its tensors.
            RunFolderError: the file cannot be written.
        """
        program, path = capture(model, example, self.name), folder / PROGRAM
        with writing(path) as file:
            sink = _Sink(file)
            try:
                torch.export.save(program, cast(IO[bytes], sink))
            except RuntimeError as error:
                raise ArtifactError(
                    f"{self.name}: the ticket cannot be saved: {first_cause(error)}"
                ) from error
            if sink.fault is not None:
                raise sink.fault
        if strange := find_unsafe(path):
            raise ArtifactError(
                f"{self.name}: torch pickles {strange[0]} of this ticket, and nothing pickled is written; "
                "choose another format"
            )
        return (PROGRAM,)

    def reload(self, folder: Path) -> Predictor:
        """Load the program from its file, once it is seen to hold text and numbers alone.

        Raises:
            ArtifactError: it holds something else, or is no program.
        """
        path = folder / PROGRAM
        if strange := find_unsafe(path):
            raise ArtifactError(f"{path} holds more than text and numbers ({strange[0]}): it is not loaded")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = torch.export.load(path).module()
        except Exception as error:  # torch's reader has no kind of error of its own
            raise ArtifactError(f"{path} does not load: {first_cause(error)}") from error

        def predict(batch: Any) -> Tensor:
            with torch.inference_mode(), plain_kernels():
                scores: Tensor = module(batch)
                return scores

        return predict


@final
class _Sink(io.RawIOBase):
    """Takes whatever is written and keeps a fault to itself: torch's writer would end the process."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.fault: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self.file.seek(offset, whence)

    def write(self, content: Any, /) -> int:
        if self.fault is None:
            try:
                self.file.write(content)
            except OSError as error:
                self.fault = error
        return len(content)


def find_unsafe(path: Path) -> list[str]:
    """Return what of a ``.pt2`` file is neither text nor raw numbers; nothing is loaded for that.

    Raises:
        ArtifactError: it is not an archive of torch's.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            # An empty record is read as nothing.
            found = [
                each.filename for each in records if each.file_size and not _PLAIN.fullmatch(each.filename)
            ]
            names = [each.filename for each in records]
            found += [name for name in dict.fromkeys(names) if names.count(name) > 1]
            for name in names:
                if name.endswith("_config.json"):
                    held = json.loads(archive.read(name))["config"]
                    found += [each for each, payload in held.items() if payload["use_pickle"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{path} is no program of torch.export: {error}") from error
    return found
