"""The plan of a pruning: which units are kept, in the numbering of the dense model. An artifact of its own.

Replayed on the initial or rewound weights it gives the structured lottery ticket, on optimizer state the
state of the ticket's optimizer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar, Final, TypeAlias

from torch import nn

from tpsprune.errors import ArtifactError
from tpsprune.pruning.groups import Attribute, PrunedGroup, Slice
from tpsprune.pruning.open_attention import opened_shapes, split_of

__all__ = ["Plan", "TensorFact", "first_difference", "signature_of", "versions"]

PACKAGES: Final = ("tpsprune", "torch", "torch-pruning")

Kind: TypeAlias = tuple[str, Callable[[Any], bool]]
"""What a field of a JSON object has to be, in words, and whether a value is."""


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


ANYTHING: Final[Kind] = ("a value is", lambda _: True)
TEXT: Final[Kind] = ("a text is", lambda value: isinstance(value, str))
COUNT: Final[Kind] = ("a whole number from 0 is", _is_count)
LIST: Final[Kind] = ("a list is", lambda value: isinstance(value, list))
COUNTS: Final[Kind] = (
    "a list of whole numbers from 0 is",
    lambda value: isinstance(value, list) and all(map(_is_count, value)),
)
TEXTS: Final[Kind] = (
    "a list of texts is",
    lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value),
)
TEXT_MAP: Final[Kind] = (
    "an object of texts is",
    lambda value: isinstance(value, Mapping) and all(isinstance(each, str) for each in value.values()),
)
PLAN_FIELDS: Final = {
    "schema": ANYTHING,
    "target": TEXT,
    "groups": LIST,
    "new_biases": TEXTS,
    "opened": TEXTS,
    "versions": TEXT_MAP,
    "model": LIST,
    "digest": ANYTHING,
}
GROUP_FIELDS: Final = {"name": TEXT, "width": COUNT, "kept": COUNTS, "slices": LIST, "attributes": LIST}
SLICE_FIELDS: Final = {"tensor": TEXT} | dict.fromkeys(("axis", "offset", "block", "repeat", "stride"), COUNT)
ATTRIBUTE_FIELDS: Final = {"module": TEXT, "name": TEXT, "per_unit": COUNT}
FACT_FIELDS: Final = {"name": TEXT, "shape": COUNTS, "dtype": TEXT}


@dataclass(frozen=True, slots=True)
class TensorFact:
    """Name, shape and number type of one tensor of a state dict."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name} {list(self.shape)} {self.dtype}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything needed to prune a model of the same architecture to the same units.

    ``target`` is what was asked for, as words; ``opened`` are the attention modules that are replaced by
    the same function with its projections as layers, before anything is pruned; ``new_biases`` the layers
    that are given a bias they did not have; ``model`` the tensors of the dense model in order.
    """

    SCHEMA: ClassVar[str] = "tpsprune.plan/2"

    target: str
    groups: tuple[PrunedGroup, ...]
    new_biases: tuple[str, ...]
    opened: tuple[str, ...] = ()
    versions: dict[str, str]
    model: tuple[TensorFact, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of what is pruned: the dense model opened and given its new biases."""
        shapes = opened_shapes({fact.name: fact.shape for fact in self.model}, self.opened)
        return shapes | {f"{name}.bias": shapes[f"{name}.weight"][:1] for name in self.new_biases}

    @property
    def digest(self) -> str:
        """SHA-256 of the dense model's signature: names, shapes and number types in order."""
        return hashlib.sha256("\n".join(map(str, self.model)).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values, its schema named."""
        return {
            "schema": self.SCHEMA,
            "target": self.target,
            "groups": [
                {
                    "name": group.name,
                    "width": group.width,
                    "kept": list(group.kept),
                    "slices": [asdict(slice_) for slice_ in group.slices],
                    "attributes": [asdict(attribute) for attribute in group.attributes],
                }
                for group in self.groups
            ],
            "new_biases": list(self.new_biases),
            "opened": list(self.opened),
            "versions": dict(self.versions),
            "model": [{**asdict(fact), "shape": list(fact.shape)} for fact in self.model],
            "digest": self.digest,
        }

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
                f"plan: schema {raw['schema']!r} is not known here, which reads {cls.SCHEMA!r}"
            )
        fields = _read_object("plan", raw, PLAN_FIELDS)
        plan = cls(
            target=fields["target"],
            groups=tuple(_read_group(f"plan.groups[{i}]", each) for i, each in enumerate(fields["groups"])),
            new_biases=tuple(fields["new_biases"]),
            opened=tuple(fields["opened"]),
            versions=dict(fields["versions"]),
            model=tuple(
                TensorFact(fact["name"], tuple(fact["shape"]), fact["dtype"])
                for fact in _read_objects("plan.model", fields["model"], FACT_FIELDS)
            ),
        )
        if plan.digest != raw["digest"]:
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
    """Say where two signatures first differ, or return an empty string."""
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


def _read_object(place: str, raw: object, kinds: Mapping[str, Kind]) -> Mapping[str, Any]:
    """Return a JSON object that has exactly the fields of ``kinds``, each of its kind.

    Raises:
        ArtifactError: the message names the place.
    """
    if not isinstance(raw, Mapping):
        raise ArtifactError(f"{place}: an object is needed, found {type(raw).__name__}")
    if strange := sorted(set(map(str, raw)) ^ set(kinds)):
        state = "is missing" if strange[0] in kinds else "is not known"
        raise ArtifactError(f"{place}: {strange[0]!r} {state}")
    for name, (needed, holds) in kinds.items():
        if not holds(raw[name]):
            raise ArtifactError(f"{place}.{name}: {needed} needed, found {json.dumps(raw[name])[:60]}")
    return raw


def _read_objects(place: str, raw: Sequence[object], kinds: Mapping[str, Kind]) -> list[Mapping[str, Any]]:
    return [_read_object(f"{place}[{i}]", each, kinds) for i, each in enumerate(raw)]


def _read_group(place: str, raw: object) -> PrunedGroup:
    fields = _read_object(place, raw, GROUP_FIELDS)
    pruned = PrunedGroup(
        fields["name"],
        fields["width"],
        tuple(fields["kept"]),
        tuple(Slice(**each) for each in _read_objects(f"{place}.slices", fields["slices"], SLICE_FIELDS)),
        tuple(
            Attribute(**each)
            for each in _read_objects(f"{place}.attributes", fields["attributes"], ATTRIBUTE_FIELDS)
        ),
    )
    if not pruned.kept or list(pruned.kept) != sorted(set(pruned.kept)) or pruned.kept[-1] >= pruned.width:
        raise ArtifactError(f"{place}.kept: ascending units below {pruned.width} are needed, at least one")
    return pruned


def _check_fits_itself(plan: Plan) -> None:
    held = {fact.name for fact in plan.model}
    for module in plan.opened:
        if not split_of(module, held):
            raise ArtifactError(f"plan.opened: {module!r} is no closed attention module in plan.model")
    opened = opened_shapes({fact.name: fact.shape for fact in plan.model}, plan.opened)
    for module in plan.new_biases:
        if f"{module}.weight" not in opened or f"{module}.bias" in opened:
            raise ArtifactError(f"plan.new_biases: {module!r} is no layer without a bias in plan.model")
    shapes = plan.shapes
    for group in plan.groups:
        for slice_ in group.slices:
            shape = shapes.get(slice_.tensor, ())
            end = slice_.offset + (slice_.repeat - 1) * slice_.stride + group.width * slice_.block
            if slice_.axis >= len(shape) or not slice_.block or not slice_.repeat or end > shape[slice_.axis]:
                raise ArtifactError(
                    f"plan.groups {group.name!r}: its units do not fit axis {slice_.axis} "
                    f"of {slice_.tensor!r}"
                )
