"""What ``doctor`` found: the machine, what is measured of it and how well, and what would measure more."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from tpsprune.records.energy import EnergyClass

__all__ = ["Diagnosis", "MachineFacts", "MeteredPart", "Remedy", "SoftwareFacts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """The devices; ``None`` is what could not be found out.

    A container is known by its mark, and that there is none is not: ``container`` is true or ``None``.
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
    """The whole of it; no ``grade`` where it is not known what would be metered."""

    SCHEMA: ClassVar[str] = "tpsprune.doctor/1"

    machine: MachineFacts
    software: SoftwareFacts
    parts: tuple[MeteredPart, ...]
    grade: str | None
    grade_meaning: str
    remedies: tuple[Remedy, ...]

    def to_json(self) -> dict[str, Any]:
        """Return what was found as plain JSON values."""
        return {"schema": self.SCHEMA, **asdict(self)}
