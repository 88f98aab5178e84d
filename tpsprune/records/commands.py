"""What ``check``, ``doctor`` and ``export`` return, and the manifest of an exported bundle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final, Literal

from annotated_types import MinLen
from pydantic import Field

from tpsprune.records.energy import EnergyClass
from tpsprune.records.result import Unpruned
from tpsprune.records.serial import Natural, Sha256
from tpsprune.records.task import TaskFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedGroup:
    """Coupled units: ``layers`` produce them, ``members`` work on each, ``readers`` are their consumers.

    ``kind`` is what a unit is: ``units`` (channels, neurons), ``heads``, ``head-width`` or ``blocks``.
    ``width_after`` is how many the recipe's target would leave, where that was requested.
    """

    name: str
    width: int
    layers: tuple[str, ...]
    readers: tuple[str, ...]
    members: tuple[str, ...] = ()
    kind: str = "units"
    width_after: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedLayer:
    """A layer, what it costs, and what pruning does to it.

    ``fate``: ``cut`` produces the units of ``groups``, ``follows`` works on units of theirs, ``stays`` keeps
    all its outputs, for ``reason``. It consumes the units of the groups that it ``reads``, and loses as many
    inputs.
    ``macs`` are its own multiply-accumulates for one item, without those of layers inside it; ``macs_share``
    is of the model's.
    """

    name: str
    kind: str
    parameters: int
    macs: int
    macs_share: float
    fate: Literal["cut", "follows", "stays"]
    groups: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A recipe that would run, and with what.

    ``weights`` names the weights behind the widths, ``from_data`` the settings of a library's model that
    follow from the data. ``cost_share`` is the cost of the model at the planned widths over its cost now, in
    the unit of the target; ``None`` where widths were not requested.
    """

    schema: Literal["tpsprune.check/1"] = "tpsprune.check/1"
    name: str
    device: str
    task: TaskFacts
    items: dict[str, int]
    steps_per_epoch: int
    parameters: int
    macs: int
    target: str
    groups: tuple[CheckedGroup, ...]
    unpruned: tuple[Unpruned, ...]
    layers: tuple[CheckedLayer, ...] = ()
    weights: str = ""
    trained: bool = False
    cost_share: float | None = None
    rounds: int = 1
    from_data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """The devices; ``None`` is what could not be found out.

    A container has a mark, its absence proves nothing: ``container`` is true or ``None``.
    """

    cpu_model: str | None
    logical_cpus: int | None
    ram_bytes: int | None
    virtualised: bool | None
    container: bool | None
    gpus: tuple[str, ...] | None
    gpu_driver: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeteredPart:
    """One component (``cpu``, ``gpu``, ``ram``), by what it is metered, and at which class.

    ``watts`` are those that a model or a constant assumes at full load; ``None`` where there are none.
    """

    part: str
    by: str
    energy_class: EnergyClass
    watts: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """Something that is not measured: what was found, what to do, and lines to copy as they stand."""

    place: str
    found: str
    do: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftwareFacts:
    """What computes: versions, threads, and whether torch sees CUDA (built for ``torch_cuda``, if at all)."""

    versions: dict[str, str]
    torch_threads: int
    torch_cuda: str | None
    cuda_available: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What ``doctor`` found; no ``grade`` where it is not known what would be metered."""

    schema: Literal["tpsprune.doctor/1"] = "tpsprune.doctor/1"
    machine: MachineFacts
    software: SoftwareFacts
    parts: tuple[MeteredPart, ...]
    grade: str | None
    grade_meaning: str
    remedies: tuple[Remedy, ...]


@dataclass(frozen=True, slots=True)
class Stamp:
    """What shows that a file is whole: its SHA-256 in hexadecimal, and its size."""

    sha256: Sha256
    bytes: Natural


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One format, reloaded from its files and run on random inputs in batches of several sizes.

    ``largest_difference`` is the largest absolute difference of any score, ``largest_score`` the largest
    absolute score of the run's own ticket; at most ``tolerance_share`` of the second is ``allowed``.
    """

    format: str
    files: tuple[str, ...]
    batches: tuple[int, ...]
    largest_difference: float
    largest_score: float
    tolerance_share: float
    allowed: float = 0.0

    def __post_init__(self) -> None:
        """Work out the largest difference that passes."""
        object.__setattr__(self, "allowed", self.tolerance_share * self.largest_score)

    @property
    def is_equal(self) -> bool:
        """Whether the difference passes; one that is not a number does not."""
        return self.largest_difference <= self.allowed


@dataclass(frozen=True, slots=True)
class Exporting:
    """A step that begins: what is done now, of which format."""

    format: str
    doing: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A finished export: its folder, every file in it, and the comparisons, in the order of the formats.

    ``calls`` is the dotted path of what loading it calls, where the model is the user's own code. ``size`` is
    that of the family which was picked.
    """

    schema: Literal["tpsprune.exported/1"] = "tpsprune.exported/1"
    folder: str
    stamps: Annotated[dict[str, Stamp], Field(alias="files")]
    compared: tuple[Compared, ...]
    calls: str = ""
    size: float | None = None

    def __post_init__(self) -> None:
        """Sort the files by name."""
        object.__setattr__(self, "stamps", dict(sorted(self.stamps.items())))

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files, sorted."""
        return tuple(self.stamps)

    @property
    def largest_difference(self) -> float:
        """The largest difference of any format."""
        return max(each.largest_difference for each in self.compared)


FIRST_BUNDLE: Final = "tpsprune.bundle/1"
SAVED: Final = {"safetensors"}
"""The formats of a bundle without a recipe."""
FileName = Literal[
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "modeling_pruned.py",
    "own.safetensors",
    "plan.json",
    "recipe.toml",
    "shared.safetensors",
    "ticket.onnx",
    "ticket.onnx.data",
    "ticket.pt2",
    "ticket.safetensors",
]
DtypeName = Literal[
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "bool",
    "complex64",
    "float8_e4m3fn",
    "float8_e5m2",
]


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """Shape and number type of a tensor."""

    shape: tuple[Natural, ...]
    dtype: DtypeName


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a bundle holds, and what shows that it is whole: ``manifest.json``.

    ``formats`` are the files of each format; plan, recipe and card belong to all of them. ``tensors`` are
    those of ``ticket.safetensors``, none where that format was not requested. ``facts`` are those of the
    task in ``recipe.toml``; a ticket that was saved without a recipe has neither. ``seal`` is the SHA-256 of
    all that stands before it in the file. A bundle of the first version has neither card nor seal.
    ``shared`` names the tensors of a family's size that lie beside its folder, in ``shared.safetensors``; the
    others then lie in ``own.safetensors``.
    """

    SCHEMA: ClassVar[str] = "tpsprune.bundle/2"

    schema: Literal["tpsprune.bundle/1", "tpsprune.bundle/2"] = "tpsprune.bundle/2"
    facts: TaskFacts | None
    versions: dict[str, str]
    formats: dict[
        Literal["safetensors", "torch-export", "onnx", "hf"], Annotated[tuple[str, ...], MinLen(1)]
    ] = field(default_factory=dict)
    files: dict[FileName, Stamp]
    tensors: dict[str, TensorFacts]
    shared: tuple[str, ...] = ()
    seal: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""

    def __post_init__(self) -> None:
        """Hold the parts against one another.

        Raises:
            ValueError: a file that such a bundle has, or that a format names, is not among the files, or
                a format needs a recipe and there is none.
        """
        is_first = self.schema == FIRST_BUNDLE
        if is_first and (self.formats or self.seal or len(self.files) > 3):
            raise ValueError(f"{FIRST_BUNDLE} has no formats, no seal, and three files at most")
        if is_first:
            object.__setattr__(self, "formats", {"safetensors": ("ticket.safetensors",)})
        elif not self.formats:
            raise ValueError("formats is missing or empty")
        described = () if self.facts is None else ("recipe.toml",)
        for name in ("plan.json", *described, *(() if is_first else ("README.md",))):
            if name not in self.files:
                raise ValueError(f"files.{name} is missing")
        if self.facts is None and (is_first or "recipe.toml" in self.files or set(self.formats) != SAVED):
            raise ValueError("facts must be there: only safetensors without a recipe have none")
        if bool(self.shared) != ("shared.safetensors" in self.files) or not {*self.shared} <= {*self.tensors}:
            raise ValueError("shared names other tensors than there are, or no file has them")
        held_alone = "own.safetensors" in self.files
        if held_alone != bool(self.shared) or (held_alone and "ticket.safetensors" in self.files):
            raise ValueError("own.safetensors goes with shared tensors, and without ticket.safetensors")
        if len({*self.shared}) < len(self.shared):
            raise ValueError("shared names a tensor twice")
        for kind, held in self.formats.items():
            if missing := [name for name in held if name not in self.files]:
                raise ValueError(f"{missing[0]} of format {kind} is not among its files")
