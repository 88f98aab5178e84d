"""Format ``hf``: ``config.json`` and ``model.safetensors``, which ``from_pretrained`` loads.

Where a configuration of the model's architecture has the pruned widths, it is all that is needed. Where none
has (widths that differ from layer to layer, in an architecture that takes one number), the code that builds
them lies beside the weights, and the library asks for ``trust_remote_code=True``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, final

from torch import nn

from tpsprune.errors import ArtifactError, CannotWriteError
from tpsprune.export.configurations import OF_CODE, Fit, architecture_of, fitting_config
from tpsprune.export.pruned_architecture import (
    CODE,
    CONFIG,
    auto_classes,
    differences,
    pruned_class,
    rewrite_config,
    write_architecture,
)
from tpsprune.export.torch_export import Predictor, first_cause, predictor_of
from tpsprune.numerics.libraries import is_of_transformers

FILES: Final = (CONFIG, "generation_config.json", "model.safetensors", CODE)
_PRIVATE: Final = ("_name_or_path", "name_or_path")
"""Fields of a configuration that hold where somebody's model was loaded from."""


@final
class HuggingFace:
    """A ticket as its own architecture at other widths, by a configuration or by code beside the weights.

    The reloaded model may take another attention kernel than the ticket, which adds in another order:
    differences of at most 1e-5 of the largest score pass.
    """

    name: ClassVar[str] = "hf"
    tolerance_share: ClassVar[float] = 1e-5

    def refuse(self, model: nn.Module) -> None:
        """Refuse a model of other libraries, or one that differs from its architecture in more than widths.

        Raises:
            ArtifactError: with the reason.
        """
        if not is_of_transformers(model):
            raise ArtifactError(
                f"format '{self.name}' is for models of the transformers library, and the ticket is a "
                f"{type(model).__name__}; use safetensors, torch-export or onnx"
            )
        _describe(model)

    def write(self, folder: Path, model: nn.Module, example: Any) -> tuple[str, ...]:  # noqa: ARG002
        """Write what ``from_pretrained`` loads.

        Raises:
            ArtifactError: its weights do not go in.
            CannotWriteError: the files cannot be written.
        """
        try:
            # One file: a file in parts needs an index besides.
            with _without_bars():
                save_pretrained(model, folder, max_shard_size="1000GB")
        except OSError as error:
            raise CannotWriteError(f"cannot write {folder}: {error.strerror or error}") from error
        except (RuntimeError, ValueError) as error:
            raise ArtifactError(f"{self.name}: the ticket cannot be saved: {first_cause(error)}") from error
        rewrite_config(folder, {}, without=_PRIVATE)
        return tuple(name for name in FILES if (folder / name).is_file())

    def reload(self, folder: Path) -> Predictor:
        """Load the files as a user would, from the folder alone; code in it is our own.

        Raises:
            ArtifactError: the library does not load them.
        """
        import transformers

        kind = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["architectures"][0]
        try:
            architecture = pruned_class(folder) if (folder / CODE).is_file() else getattr(transformers, kind)
            with _without_bars():
                model = architecture.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError, RuntimeError, AttributeError) as error:
            raise ArtifactError(f"{self.name}: what was saved does not load: {first_cause(error)}") from error
        return predictor_of(model.eval())


def auto_class(folder: Path) -> str:
    """Return the ``Auto`` class that loads what was written, where that takes code; else an empty text."""
    if not (folder / CODE).is_file():
        return ""
    places: dict[str, str] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["auto_map"]
    return next(iter(places))


def save_pretrained(ticket: nn.Module, save_directory: str | Path, **options: Any) -> None:
    """Save a pruned model of transformers so that ``from_pretrained`` loads it.

    In the place of the model's own ``save_pretrained``, which writes a configuration of the dense widths.
    Without code where a configuration has the widths; else beside ``modeling_pruned.py``, and it is loaded
    with ``AutoModel….from_pretrained(FOLDER, trust_remote_code=True)``.

    Args:
        ticket: a ``transformers.PreTrainedModel``, pruned.
        save_directory: made if it is not there.
        options: of the library's method, but for ``push_to_hub``: call ``ticket.push_to_hub`` instead.

    Raises:
        ArtifactError: it differs from its architecture in more than widths; names where.
        ValueError: ``push_to_hub=True``.

    Cost: some dozens of models built without memory.
    """
    if options.pop("push_to_hub", False):
        raise ValueError("push_to_hub=True: save it to a folder first, or call push_to_hub of the model")
    found = _describe(ticket)
    if isinstance(found, Fit):
        if found.new_biases:
            like = next(iter(ticket.parameters()))
            zeros = {name: like.detach().new_zeros(shape) for name, shape in found.new_biases.items()}
            options["state_dict"] = {**(options.get("state_dict") or ticket.state_dict()), **zeros}
    else:
        # The library renames tensors for its own classes only, when it saves and when it loads.
        options["save_original_format"] = False
    own: Any = type(ticket)
    own.save_pretrained(ticket, save_directory, **options)
    if not options.get("is_main_process", True):
        return
    folder = Path(save_directory)
    if isinstance(found, Fit):
        # Code of somebody else's own, and where it is, stay.
        kind = architecture_of(ticket)
        if kind is not own:
            (folder / CODE).unlink(missing_ok=True)
        without = () if kind is own else OF_CODE
        rewrite_config(folder, {"architectures": [kind.__name__], **found.changes}, without=without)
    else:
        write_architecture(folder, ticket, found)


def saves_itself(ticket: nn.Module) -> nn.Module:
    """Return ``ticket``; where it is of transformers, its ``save_pretrained`` is ours from now on."""
    if is_of_transformers(ticket):
        # Not a method: one that is pickled comes back as the class's own.
        object.__setattr__(ticket, "save_pretrained", partial(save_pretrained, ticket))
    return ticket


def _describe(model: nn.Module) -> Fit | dict[str, Any]:
    """Return the configuration that has the widths of a model, or where it differs from its own.

    Raises:
        ArtifactError: it differs in more than widths, or the architecture is not the library's own.
    """
    if (fit := fitting_config(model)) is not None:
        return fit
    auto_classes(model)
    return differences(model)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep the library from printing progress bars between ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
