"""Format ``hf``: ``config.json`` and ``model.safetensors``, which ``from_pretrained`` loads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final, final

import torch
from torch import nn

from tpsprune.errors import ArtifactError, CannotWriteError
from tpsprune.export.capture import Answers, answers_of, words_of
from tpsprune.export.hugging_face_config import fitting_config

__all__ = ["HuggingFace", "is_pretrained"]

FILES: Final = ("config.json", "generation_config.json", "model.safetensors")
_PRIVATE: Final = ("_name_or_path", "name_or_path")
"""Fields of a configuration that hold where somebody's model was loaded from."""


@final
class HuggingFace:
    """A ticket as its own architecture at other widths, where one configuration has them.

    The reloaded model may take another attention kernel than the ticket, which adds in another order:
    differences of at most 1e-5 of the largest score pass.
    """

    name: ClassVar[str] = "hf"
    tolerance_share: ClassVar[float] = 1e-5

    def refuse(self, model: nn.Module) -> None:
        """Refuse a model that is none of the library's, or whose widths no configuration has.

        Raises:
            ArtifactError: says why, field by field.
        """
        if not is_pretrained(model):
            raise ArtifactError(
                f"format '{self.name}' is for models of the transformers library, and the ticket is a "
                f"{type(model).__name__}: safetensors, torch-export or onnx would do"
            )
        fitting_config(model)

    def write(self, folder: Path, model: nn.Module, example: Any) -> tuple[str, ...]:  # noqa: ARG002
        """Build the architecture at the ticket's widths, fill it, and let it save itself.

        Raises:
            ArtifactError: its weights do not go in.
            CannotWriteError: the files cannot be written.
        """
        fit = fitting_config(model)
        kept = dict(model.state_dict())
        reference = next(iter(model.parameters()))
        with torch.random.fork_rng():
            target: Any = type(model)(fit.config)
        target.to(reference.dtype).eval()
        zeros = {name: torch.zeros_like(target.state_dict()[name]) for name in fit.new_biases}
        try:
            target.load_state_dict({**kept, **zeros})
            # One file: what is cut in parts needs an index besides.
            with _without_bars():
                target.save_pretrained(folder, max_shard_size="1000GB")
        except OSError as error:
            raise CannotWriteError(f"cannot write {folder}: {error.strerror or error}") from error
        except (RuntimeError, ValueError) as error:
            raise ArtifactError(f"{self.name}: the ticket cannot be saved: {words_of(error)}") from error
        _without_origin(folder / FILES[0])
        return tuple(name for name in FILES if (folder / name).is_file())

    def reload(self, folder: Path) -> Answers:
        """Load the files as a user would, from the folder alone.

        Raises:
            ArtifactError: the library does not load them.
        """
        kind = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))["architectures"][0]
        import transformers

        try:
            with _without_bars():
                model = getattr(transformers, kind).from_pretrained(
                    folder, local_files_only=True, use_safetensors=True
                )
        except (OSError, ValueError, RuntimeError, AttributeError) as error:
            raise ArtifactError(f"{self.name}: what was saved does not load: {words_of(error)}") from error
        return answers_of(model.eval())


def is_pretrained(model: nn.Module) -> bool:
    """Return whether a model is one of the transformers library's."""
    return any(
        base.__name__ == "PreTrainedModel" and base.__module__.partition(".")[0] == "transformers"
        for base in type(model).__mro__
    )


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep the library from drawing bars of its own beside ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _without_origin(path: Path) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: value for name, value in config.items() if name not in _PRIVATE}
    if kept != config:
        path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
