"""Format ``torch-export``: the ticket as a program of torch's own, which needs no tpsprune to run.

``torch.export.load`` unpickles whatever a file holds as a pickle, loads compiled code that lies in it, and
evaluates the expressions of its sizes: **a file of somebody else can run code**. The files written here
hold neither pickles nor compiled code: weights are raw bytes, the graph is JSON, and the example inputs,
which torch would pickle, are left out. That much is seen without loading a file, and is seen here before.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any, BinaryIO, ClassVar, Final, cast, final

import torch
from torch import Tensor, nn

from tpsprune.errors import ArtifactError
from tpsprune.export.capture import Answers, capture, plain_kernels, words_of
from tpsprune.runs import writing

__all__ = ["TorchExport", "strange_in"]

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
                raise ArtifactError(f"{self.name}: the ticket cannot be saved: {words_of(error)}") from error
            if sink.fault is not None:
                raise sink.fault
        if strange := strange_in(path):
            raise ArtifactError(
                f"{self.name}: torch pickles {strange[0]} of this ticket, and nothing pickled is written; "
                "another format would do"
            )
        return (PROGRAM,)

    def reload(self, folder: Path) -> Answers:
        """Load the program from its file, once it is seen to hold text and numbers alone.

        Raises:
            ArtifactError: it holds something else, or is no program.
        """
        path = folder / PROGRAM
        if strange := strange_in(path):
            raise ArtifactError(f"{path} holds more than text and numbers ({strange[0]}): it is not loaded")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = torch.export.load(path).module()
        except Exception as error:  # torch's reader has no kind of error of its own
            raise ArtifactError(f"{path} does not load: {words_of(error)}") from error

        def answer(batch: Any) -> Tensor:
            with torch.inference_mode(), plain_kernels():
                scores: Tensor = module(batch)
                return scores

        return answer


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


def strange_in(path: Path) -> list[str]:
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
