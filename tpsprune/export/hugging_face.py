"""Format ``hf``: ``config.json`` and ``model.safetensors``, which ``from_pretrained`` loads.

An architecture of the transformers library takes its widths from a configuration that holds one number for
all layers. Which number belongs to which tensor is found by trial: a candidate is built without memory and
its shapes are compared. If none has the ticket's shapes, the refusal gives the reason, field by field.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, final

import torch
from torch import nn

from tpsprune.errors import ArtifactError, CannotWriteError
from tpsprune.export.torch_export import Predictor, first_cause, predictor_of

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
            ArtifactError: with the reason, field by field.
        """
        if not is_pretrained(model):
            raise ArtifactError(
                f"format '{self.name}' is for models of the transformers library, and the ticket is a "
                f"{type(model).__name__}; use safetensors, torch-export or onnx"
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
            # One file: a file in parts needs an index besides.
            with _without_bars():
                target.save_pretrained(folder, max_shard_size="1000GB")
        except OSError as error:
            raise CannotWriteError(f"cannot write {folder}: {error.strerror or error}") from error
        except (RuntimeError, ValueError) as error:
            raise ArtifactError(f"{self.name}: the ticket cannot be saved: {first_cause(error)}") from error
        _without_origin(folder / FILES[0])
        return tuple(name for name in FILES if (folder / name).is_file())

    def reload(self, folder: Path) -> Predictor:
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
            raise ArtifactError(f"{self.name}: what was saved does not load: {first_cause(error)}") from error
        return predictor_of(model.eval())


def is_pretrained(model: nn.Module) -> bool:
    """Return whether a model is one of the transformers library's."""
    return any(
        base.__name__ == "PreTrainedModel" and base.__module__.partition(".")[0] == "transformers"
        for base in type(model).__mro__
    )


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


def _without_origin(path: Path) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: value for name, value in config.items() if name not in _PRIVATE}
    if kept != config:
        path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


Shapes = dict[str, tuple[int, ...]]

_WIDTHS: Final = ("inner", "dim", "size", "width", "head")
"""Parts of the names of fields that may hold a width where they are empty."""
_BIAS: Final = ".bias"
_MOST_NAMED: Final = 3
MOST_REFUSED: Final = 150


@dataclass(frozen=True, slots=True)
class Fit:
    """A configuration that fits, and the biases it brings that the ticket has not: they are zero."""

    config: Any
    new_biases: tuple[str, ...]


def fitting_config(model: nn.Module) -> Fit:
    """Return the configuration of ``model``, changed so that its architecture has the model's shapes.

    Fields are changed one after the other, each time the one whose new value makes most tensors fit. The
    width of a head is that of the attention modules.

    Args:
        model: a ``transformers.PreTrainedModel``, pruned.

    Raises:
        ArtifactError: no values of the fields give these shapes; names the fields and tensors.

    Cost: some dozens of models built without memory.
    """
    config = model.config
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    widths = _head_widths(model)
    fit = _tried(model, config, {})
    assert isinstance(fit, _Tried), "the configuration that the model was built with builds it"
    refusals: dict[str, None] = {}
    while misfits := _misfits(fit.shapes, wanted):
        best: _Tried | None = None
        least = len(misfits)
        for field, value in _candidates(fit, wanted, widths):
            tried = _tried(model, fit.config, {field: value})
            if isinstance(tried, str):
                refusals[f"{field}={value}: {tried}"] = None
            elif (left := len(_misfits(tried.shapes, wanted))) < least:
                best, least = tried, left
        if best is None:
            raise ArtifactError(_why_not(model, wanted, widths, [*refusals]))
        fit = best
    return Fit(fit.config, tuple(name for name in fit.shapes if name not in wanted))


@dataclass(frozen=True, slots=True)
class _Tried:
    """A configuration, and the shapes that its architecture has."""

    config: Any
    shapes: Shapes


def _tried(model: nn.Module, config: Any, changes: Mapping[str, Any]) -> _Tried | str:
    """Build the architecture without memory; where it refuses the changes, return the reason."""
    try:
        changed = type(config).from_dict({**config.to_dict(), **changes})
        changed._attn_implementation = config._attn_implementation
        with torch.device("meta"):
            built = type(model)(changed)
    except Exception as error:  # noqa: BLE001 -- an architecture refuses a number in its own way
        return first_cause(error)[:MOST_REFUSED]
    return _Tried(changed, {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()})


def _misfits(found: Shapes, wanted: Shapes) -> list[str]:
    """Return the tensors of which one has what the other has not; a bias may be added, for it can be zero."""
    return [
        name
        for name in dict.fromkeys((*wanted, *found))
        if found.get(name) != wanted.get(name) and not (name not in wanted and name.endswith(_BIAS))
    ]


def _candidates(fit: _Tried, wanted: Shapes, widths: Mapping[str, set[int]]) -> Iterator[tuple[str, Any]]:
    found = fit.shapes
    changes = {
        (old, new)
        for name in _misfits(found, wanted)
        if name in found and name in wanted and len(found[name]) == len(wanted[name])
        for old, new in zip(found[name], wanted[name], strict=True)
        if old != new
    }
    lacks_bias = any(name.endswith(_BIAS) and name not in found for name in wanted)
    for field, value in fit.config.to_dict().items():
        if value is False and lacks_bias and "bias" in field:
            yield field, True
        elif value is None and any(part in field for part in _WIDTHS):
            yield from ((field, new) for new in sorted({new for _, new in changes}))
        elif type(value) is int and value > 1:
            scaled = {value * new // old for old, new in changes if value * new % old == 0}
            values = widths.get(field)
            yield from (
                (field, each) for each in sorted(scaled - {value}) if values is None or each in values
            )


def _head_widths(model: nn.Module) -> dict[str, set[int]]:
    """Return, by field that is the width of a head, the numbers that modules hold under its very name.

    Heads times their width make one axis; how wide one is, only the attention module has.
    """
    numbers: dict[str, set[int]] = defaultdict(set)
    config: Any = model.config
    fields = [name for name in config.to_dict() if "head" in name and ("dim" in name or "size" in name)]
    for module in model.modules():
        for field in fields:
            if type(value := vars(module).get(field)) is int:
                numbers[field].add(value)
    return dict(numbers)


def _why_not(
    model: nn.Module, wanted: Shapes, widths: Mapping[str, set[int]], refusals: Sequence[str]
) -> str:
    """Say which fields would have to be several numbers, which tensors no field reaches, what was refused."""
    start = _tried(model, model.config, {})
    assert isinstance(start, _Tried)
    before = _misfits(start.shapes, wanted)
    fits: dict[str, dict[Any, str]] = defaultdict(dict)
    reached: set[str] = set()
    for field, value in _candidates(start, wanted, widths):
        tried = _tried(model, model.config, {field: value})
        if isinstance(tried, str):
            continue
        after = _misfits(tried.shapes, wanted)
        if fitted := [name for name in before if name not in after]:
            fits[field][value] = fitted[0]
            reached.update(fitted)
            if broken := [name for name in after if name not in before]:
                fits[field][getattr(model.config, field)] = broken[0]
    kind = type(model.config).__name__
    faults = [
        f"{field} is one number for all layers in {kind}: "
        + ", ".join(f"{value} fits {name}" for value, name in list(values.items())[:_MOST_NAMED])
        for field, values in fits.items()
        if len(values) > 1
    ]
    for name in [each for each in before if each not in reached][:_MOST_NAMED]:
        have = list(wanted[name]) if name in wanted else "not there"
        needs = list(start.shapes[name]) if name in start.shapes else "not there"
        faults.append(f"{name} is {have} where {type(model).__name__} has {needs}, and no field reaches it")
    faults += [f"the architecture refuses {each}" for each in refusals[:_MOST_NAMED]]
    return f"hf: no {kind} has the widths of this ticket: " + "; ".join(faults or before[:_MOST_NAMED])
