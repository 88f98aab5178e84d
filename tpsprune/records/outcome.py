"""What came out of a run: the figures of the closing table, and their JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Final

from tpsprune.records.energy import EnergyClass, EnergyMethod, PhaseEnergy
from tpsprune.records.readings import Decision
from tpsprune.records.sizes import GroupChange, Latency, LeftAlone, Size
from tpsprune.records.task import TaskFacts

__all__ = ["GIVEN", "Cost", "ModelFigures", "Outcome"]

GIVEN: Final = "given"
"""The rule of a draw that nobody made: the dense model was trained elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFigures:
    """One model as weighed: test accuracy (read once, at the end), size and latency by batch."""

    accuracy: float
    size: Size
    latencies: tuple[Latency, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain JSON values."""
        return {
            "accuracy": self.accuracy,
            "parameters": self.size.parameters,
            "macs": self.size.macs,
            "bytes": self.size.bytes,
            "latency_seconds": {
                f"batch-{latency.batch}": {
                    "median": latency.median_seconds,
                    "lower_quartile": latency.lower_quartile_seconds,
                    "upper_quartile": latency.upper_quartile_seconds,
                    "repeats": latency.repeats,
                }
                for latency in self.latencies
            },
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> ModelFigures:
        """Rebuild figures written by ``to_json``."""
        return cls(
            accuracy=raw["accuracy"],
            size=Size(parameters=raw["parameters"], macs=raw["macs"], bytes=raw["bytes"]),
            latencies=tuple(
                Latency(
                    batch=int(name.removeprefix("batch-")),
                    median_seconds=figures["median"],
                    lower_quartile_seconds=figures["lower_quartile"],
                    upper_quartile_seconds=figures["upper_quartile"],
                    repeats=figures["repeats"],
                )
                for name, figures in raw["latency_seconds"].items()
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Joules (``None`` when nothing was metered), wall seconds and processor seconds."""

    joules: float | None
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Everything a finished run has to say; ``to_json`` is ``result.json``.

    ``projected_dense`` is ``None`` where the dense model was given and not trained by this run: nothing
    is known of what training it cost. ``drawn.rule`` is then ``given`` and its reason says what was given.
    """

    SCHEMA: ClassVar[str] = "tpsprune.result/1"

    name: str
    seed: int
    device: str
    machine: dict[str, Any]
    task: TaskFacts
    dense: ModelFigures
    ticket: ModelFigures
    cut_validation_accuracy: float
    groups: tuple[GroupChange, ...]
    left_alone: tuple[LeftAlone, ...]
    drawn: Decision
    stopped: Decision
    epochs: dict[str, float]
    energy: tuple[PhaseEnergy, ...]
    method: EnergyMethod
    total: Cost
    projected_dense: Cost | None
    overhead: dict[str, float | None]
    attempts: int
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    folder: str = ""

    @property
    def was_given(self) -> bool:
        """Whether the dense model was handed in as it is, and not trained by this run."""
        return self.drawn.rule == GIVEN

    @property
    def macs_share(self) -> float:
        """The ticket's multiply-accumulates as a share of the dense model's."""
        return self.ticket.size.macs / self.dense.size.macs

    @property
    def parameters_share(self) -> float:
        """The ticket's parameters as a share of the dense model's."""
        return self.ticket.size.parameters / self.dense.size.parameters

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as plain JSON values, in the order a reader wants them."""
        return {
            "schema": self.SCHEMA,
            "name": self.name,
            "seed": self.seed,
            "device": self.device,
            "machine": self.machine,
            "task": self.task.to_json(),
            "dense": self.dense.to_json(),
            "ticket": self.ticket.to_json(),
            "cut_validation_accuracy": self.cut_validation_accuracy,
            "macs_share": self.macs_share,
            "parameters_share": self.parameters_share,
            "groups": [asdict(group) for group in self.groups],
            "left_alone": [asdict(item) for item in self.left_alone],
            "drawn_at": _moment(self.drawn),
            "stopped_at": _moment(self.stopped),
            "epochs": self.epochs,
            "energy": {
                phase.phase: {
                    "joules": phase.joules,
                    "seconds": phase.seconds,
                    "class": str(phase.energy_class),
                    "cpu_seconds": phase.cpu_seconds,
                    "joules_by_component": phase.joules_by_component,
                    "windows": phase.windows,
                    "valid": phase.valid,
                }
                for phase in self.energy
            },
            "method": self.method.to_json(),
            "total": asdict(self.total),
            "projected_dense": _projected(self.projected_dense),
            "overhead": self.overhead,
            "attempts": self.attempts,
            "notes": list(self.notes),
            "versions": self.versions,
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any], *, folder: str = "") -> Outcome:
        """Rebuild an outcome from ``result.json``; ``folder`` is where it lies now."""
        return cls(
            **{name: raw[name] for name in _SAME_IN_JSON},
            task=TaskFacts.from_json(raw["task"]),
            dense=ModelFigures.from_json(raw["dense"]),
            ticket=ModelFigures.from_json(raw["ticket"]),
            groups=tuple(GroupChange(**group) for group in raw["groups"]),
            left_alone=tuple(LeftAlone(**item) for item in raw["left_alone"]),
            drawn=Decision(kind="draw", act=True, **raw["drawn_at"]),
            stopped=Decision(kind="stop", act=True, **raw["stopped_at"]),
            energy=tuple(
                PhaseEnergy(
                    phase=name,
                    windows=phase["windows"],
                    seconds=phase["seconds"],
                    cpu_seconds=phase["cpu_seconds"],
                    joules=phase["joules"],
                    joules_by_component=phase["joules_by_component"],
                    energy_class=EnergyClass(phase["class"]),
                    valid=phase["valid"],
                )
                for name, phase in raw["energy"].items()
            ),
            method=EnergyMethod.from_json(raw["method"]),
            total=Cost(**raw["total"]),
            projected_dense=_projection(raw["projected_dense"]),
            notes=tuple(raw["notes"]),
            folder=folder,
        )


_SAME_IN_JSON = (
    "name",
    "seed",
    "device",
    "machine",
    "cut_validation_accuracy",
    "epochs",
    "overhead",
    "attempts",
    "versions",
)


def _projected(cost: Cost | None) -> dict[str, Any] | None:
    return None if cost is None else {**asdict(cost), "class": "projection"}


def _projection(raw: dict[str, Any] | None) -> Cost | None:
    return None if raw is None else Cost(**{key: raw[key] for key in raw if key != "class"})


def _moment(decision: Decision) -> dict[str, Any]:
    return {
        "epoch": decision.epoch,
        "step": decision.step,
        "reason": decision.reason,
        "rule": decision.rule,
    }
