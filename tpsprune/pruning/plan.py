"""The plan of a pruning: which units are kept, in the numbering of the dense model. An artifact.

Replayed on the initial or rewound weights it gives the structured lottery ticket, on optimizer state the
state of the ticket's optimizer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from math import prod
from typing import Any, ClassVar, Final, Literal

from torch import nn

from tpsprune.errors import ArtifactError
from tpsprune.pruning.factored import Factored
from tpsprune.pruning.groups import PrunedGroup
from tpsprune.pruning.opening import opened_shapes, parts_of
from tpsprune.records import Natural, dump, load

MOST_UNITS: Final = 2**24
PACKAGES: Final = ("tpsprune", "torch", "torch-pruning")


@dataclass(frozen=True, slots=True)
class TensorFact:
    """Name, shape and number type of one tensor of a state dict."""

    name: str
    shape: tuple[Natural, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name} {list(self.shape)} {self.dtype}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything needed to prune a model of the same architecture to the same units.

    ``target`` is the target of the pruning as text; ``opened`` are the modules that are replaced by
    the same function of plain layers, before anything is pruned (``opening``); ``new_biases`` the layers
    that gain a bias; ``factored`` those that are split in two once units are pruned; ``model`` the tensors of
    the dense model in order.
    """

    SCHEMA: ClassVar[str] = "tpsprune.plan/2"

    schema: Literal["tpsprune.plan/2"] = "tpsprune.plan/2"
    target: str
    groups: tuple[PrunedGroup, ...]
    new_biases: tuple[str, ...]
    opened: tuple[str, ...] = ()
    factored: tuple[Factored, ...] = ()
    versions: dict[str, str]
    model: tuple[TensorFact, ...]
    digest: str = ""

    def __post_init__(self) -> None:
        """Compute the digest: SHA-256 of names, shapes and number types of ``model``, in order."""
        signature = "\n".join(map(str, self.model))
        object.__setattr__(self, "digest", hashlib.sha256(signature.encode()).hexdigest())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes before pruning: of the dense model opened, with its new biases."""
        shapes = opened_shapes({fact.name: fact.shape for fact in self.model}, self.opened)
        return shapes | {f"{name}.bias": shapes[f"{name}.weight"][:1] for name in self.new_biases}

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values, its schema named; without split layers as before there were any."""
        values = dump(self)
        if not self.factored:
            del values["factored"]
        return values

    @classmethod
    def from_json(cls, raw: object) -> Plan:
        """Rebuild a plan written by ``to_json``.

        Raises:
            ArtifactError: it is not a plan, of a newer schema, or not consistent with itself.
        """
        if not isinstance(raw, Mapping) or not str(raw.get("schema", "")).startswith("tpsprune.plan/"):
            raise ArtifactError("this is not a plan: it does not name the schema 'tpsprune.plan/2'")
        if raw["schema"] != cls.SCHEMA:
            raise ArtifactError(
                f"plan: schema {raw['schema']!r} is unknown; this version reads {cls.SCHEMA!r}"
            )
        try:
            plan = load(cls, raw)
        except ValueError as error:
            raise ArtifactError(f"plan.{error}") from error
        if plan.digest != raw.get("digest"):
            raise ArtifactError("plan.digest: it is not that of the tensors listed in plan.model")
        _check_fits_itself(plan)
        return plan


def signature_of(model: nn.Module) -> tuple[TensorFact, ...]:
    """Return name, shape and number type of every tensor in a model's state dict, in order."""
    return tuple(
        TensorFact(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in model.state_dict().items()
    )


def first_difference(expected: Sequence[TensorFact], found: Sequence[TensorFact]) -> str:
    """Return where two signatures first differ, or an empty string."""
    for wanted, seen in zip(expected, found, strict=False):
        if wanted != seen:
            return f"the plan has {wanted}, the model {seen}"
    if len(expected) > len(found):
        return f"the plan has {expected[len(found)]}, the model nothing more"
    if len(found) > len(expected):
        return f"the plan has nothing more, the model {found[len(expected)]}"
    return ""


def versions() -> dict[str, str]:
    """Return the versions of the packages that a pruning depends on."""
    return {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _check_fits_itself(plan: Plan) -> None:
    held = {fact.name: fact.shape for fact in plan.model}
    for module in plan.opened:
        if not module or not parts_of(module, held) or plan.opened.count(module) > 1:
            raise ArtifactError(f"plan.opened: {module!r} is no module in plan.model that can be opened")
    opened = opened_shapes(held, plan.opened)
    for module in plan.new_biases:
        if f"{module}.weight" not in opened or f"{module}.bias" in opened:
            raise ArtifactError(f"plan.new_biases: {module!r} is no layer without a bias in plan.model")
    shapes = plan.shapes
    split = [each.layer for each in plan.factored]
    for each in plan.factored:
        size = shapes.get(f"{each.layer}.weight", ())
        if split.count(each.layer) > 1:
            raise ArtifactError(f"plan.factored: {each.layer!r} is named twice")
        if len(size) < 2 or each.rank > min(size[0], prod(size[1:])):
            raise ArtifactError(
                f"plan.factored: {each.layer!r} is no layer that has more than rank {each.rank}"
            )
    for group in plan.groups:
        kept = group.kept
        if not kept or list(kept) != sorted(set(kept)) or kept[-1] >= group.width:
            raise ArtifactError(
                f"plan.groups {group.name!r}.kept: ascending units below {group.width} are needed, at least "
                "one"
            )
        if group.width > MOST_UNITS:
            raise ArtifactError(f"plan.groups {group.name!r}.width: {MOST_UNITS} units at most are read")
        for slice_ in group.slices:
            shape = shapes.get(slice_.tensor, ())
            end = slice_.offset + (slice_.repeat - 1) * slice_.stride + group.width * slice_.block
            elements = group.width * slice_.repeat * slice_.block
            if slice_.axis >= len(shape) or not elements or max(end, elements) > shape[slice_.axis]:
                raise ArtifactError(
                    f"plan.groups {group.name!r}: its units do not fit axis {slice_.axis} "
                    f"of {slice_.tensor!r}"
                )
