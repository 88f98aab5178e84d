"""A pruned model of transformers as its architecture and the differences: what ``modeling_pruned`` rebuilds.

For the model whose widths no configuration has. The file ``modeling_pruned.py`` is copied beside the weights
with one class appended, of the architecture and ``PrunedModel``; the configuration tells the library where
that class is (``auto_map``), and what differs (``pruned``).
"""

from __future__ import annotations

import importlib.util
import inspect
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import nn

from tpsprune.errors import ArtifactError
from tpsprune.export import modeling_pruned
from tpsprune.export.configurations import OF_CODE, architecture_of, build_dense, number_at, numbers_of
from tpsprune.numerics import low_rank_layer
from tpsprune.numerics.low_rank_layer import LowRank

CODE: Final = "modeling_pruned.py"
CONFIG: Final = "config.json"


def differences(model: nn.Module) -> dict[str, Any]:
    """Return where ``model`` differs from its architecture as its configuration builds it.

    Args:
        model: a ``transformers.PreTrainedModel``, pruned.

    Returns:
        ``shapes`` of tensors by name; ``numbers`` by module and attribute, private ones aside; ``ranks`` of
        layers that are split in two, where there are any.

    Raises:
        ArtifactError: a module is of another class, a tensor is missing, or a buffer that no file holds has
            another shape: more than shapes and numbers.
    """
    built = build_dense(model)
    ranks = {
        name: module.down.weight.shape[0]
        for name, module in model.named_modules()
        if type(module).__name__ == LowRank.__name__
    }
    kind = type(built).__name__
    wanted, found = dict(model.named_modules()), dict(built.named_modules())
    for name in dict.fromkeys((*wanted, *found)):
        if name in ranks or name.rpartition(".")[0] in ranks:
            continue
        ours, theirs = (type(each.get(name)).__name__ for each in (wanted, found))
        if name and type(wanted.get(name)) is not type(found.get(name)):
            raise ArtifactError(f"hf: {name} is {ours} in the ticket and {theirs} in {kind}")
    tensors, base = model.state_dict(keep_vars=True), built.state_dict(keep_vars=True)
    if missing := [name for name in base if name not in tensors and name.rpartition(".")[0] not in ranks]:
        raise ArtifactError(f"hf: {missing[0]} is there in {kind} and not in the ticket")
    buffers = dict(built.named_buffers())
    for name, buffer in model.named_buffers():
        if name not in tensors and (name not in buffers or buffers[name].shape != buffer.shape):
            raise ArtifactError(f"hf: {name} has other sizes than in {kind}, and no file of weights holds it")
    numbers: dict[str, dict[str, Any]] = defaultdict(dict)
    for (place, attribute), value in numbers_of(model).items():
        if (before := number_at(built, place, attribute)) is not None and value != before:
            numbers[place][attribute] = value
    shapes = {
        name: list(tensor.shape)
        for name, tensor in tensors.items()
        if (name not in base or base[name].shape != tensor.shape)
        and name.rpartition(".")[0].rpartition(".")[0] not in ranks
    }
    if twice := [name for name in ranks if name not in found]:
        raise ArtifactError(f"hf: {twice[0]} is a part of a layer that was split before: it cannot be built")
    for name in ranks:  # The layer is built whole, then split.
        pair: Any = model.get_submodule(name)
        turned = type(found[name]).__name__ == "Conv1D"
        shapes[f"{name}.weight"] = list(pair.weight.T.shape if turned else pair.weight.shape)
        if pair.bias is not None:
            shapes[f"{name}.bias"] = list(pair.bias.shape)
    return {"shapes": shapes, "numbers": dict(numbers), **({"ranks": ranks} if ranks else {})}


def write_architecture(folder: Path, model: nn.Module, pruned: Mapping[str, Any]) -> None:
    """Write the code beside the weights, and into ``config.json`` where it is and what it is to build."""
    architecture = architecture_of(model).__name__
    name = f"Pruned{architecture}"
    (folder / CODE).write_text(
        f"{inspect.getsource(modeling_pruned)}\n\n"
        f"{inspect.getsource(low_rank_layer) if 'ranks' in pruned else ''}\n\n"
        f"from transformers import {architecture}  # noqa: E402\n\n\n"
        f"class {name}(PrunedModel, {architecture}):\n"
        f'    """``{architecture}``, pruned."""\n',
        encoding="utf-8",
    )
    places = dict.fromkeys(auto_classes(model), f"{Path(CODE).stem}.{name}")
    rewrite_config(folder, {"architectures": [name], "auto_map": places, "pruned": dict(pruned)})


def rewrite_config(folder: Path, changes: Mapping[str, Any], without: Sequence[str] = OF_CODE) -> None:
    """Change fields of the ``config.json`` that the library wrote, and leave some out first."""
    path = folder / CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: value for name, value in config.items() if name not in without}
    path.write_text(json.dumps({**kept, **changes}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def auto_classes(model: nn.Module) -> list[str]:
    """Return the library's ``Auto`` classes that give the architecture; ``AutoModel`` where none does.

    Raises:
        ArtifactError: the library does not have the architecture: its code is somebody's own.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    kind = architecture_of(model)
    if getattr(transformers, kind.__name__, None) is not kind:
        raise ArtifactError(
            f"hf: no configuration has the widths of this ticket, and {kind.__name__} is not an architecture "
            "of the transformers library itself; use safetensors, torch-export or onnx"
        )
    config: Any = model.config
    names = []
    for name, auto in vars(modeling_auto).items():
        mapping = getattr(auto, "_model_mapping", None) if name.startswith("AutoModel") else None
        held = mapping.get(type(config), None) if mapping is not None else None
        if kind in (held if isinstance(held, tuple | list) else (held,)):
            names.append(name)
    return names or ["AutoModel"]


def pruned_class(folder: Path) -> type[Any]:
    """Return the class that the code in a folder defines: it is imported, so it has to be our own."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    spec = importlib.util.spec_from_file_location(f"{__name__}.written", folder / CODE)
    assert spec is not None, "a path that ends in .py can be imported"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: type[Any] = getattr(module, config["architectures"][0])
    return found
