"""``[prune]``: what the ticket may cost, which units are kept, and what is repaired at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias

from annotated_types import Interval
from pydantic import Discriminator, Tag

from tpsprune.errors import Fault, PruneError
from tpsprune.recipe.bounds import STRICT, Count, Natural, OpenShare, Positive, section


class _OneTarget:
    """What targets have in common: one of a recipe has a single key, its kind."""

    __slots__ = ()
    __pydantic_config__: ClassVar[Any] = STRICT


class ShareTarget(_OneTarget):
    """A target that is a share of the dense model, held by its first field.

    Raises:
        PruneError: the share is not above 0 and below 1.
    """

    __slots__ = ()

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        kind, share = self._kind_and_share()
        if not (isinstance(share, int | float) and 0 < share < 1):
            raise PruneError(f"target {kind} = {share!r}: a share above 0 and below 1 is needed")

    def __str__(self) -> str:
        kind, share = self._kind_and_share()
        return f"{kind}={share:g}"

    @property
    def share(self) -> float:
        """The share of the dense model."""
        return self._kind_and_share()[1]

    def _kind_and_share(self) -> tuple[str, float]:
        kind = next(kind for kind in TARGETS if hasattr(self, kind))
        return kind, getattr(self, kind)


@dataclass(frozen=True, slots=True)
class Macs(ShareTarget):
    """Multiply-accumulates of the ticket as a share of the dense model's."""

    macs: OpenShare


@dataclass(frozen=True, slots=True)
class Params(ShareTarget):
    """Parameters of the ticket as a share of the dense model's."""

    params: OpenShare


@dataclass(frozen=True, slots=True)
class Bytes(ShareTarget):
    """Bytes of the tensors of the ticket's state dict, buffers too, as a share of the dense model's."""

    bytes: OpenShare


@dataclass(frozen=True, slots=True)
class Latency(ShareTarget):
    """Time of one forward pass of the ticket as a share of the dense model's, measured here."""

    latency: OpenShare
    batch_items: Count = 1


@dataclass(frozen=True, slots=True)
class Joules(ShareTarget):
    """Energy of an answer of the ticket as a share of the dense model's, metered here."""

    joules: OpenShare
    batch_items: Count = 64


@dataclass(frozen=True, slots=True)
class Tolerance(ShareTarget):
    """Variance of the inputs of a group's consumers in the dense model that may be lost, as a share."""

    tolerance: OpenShare


Share: TypeAlias = Macs | Params | Bytes | Latency | Joules | Tolerance
"""A target that is one number, as the sizes of a family are."""
SHARES: Mapping[str, type[Share]] = {
    "macs": Macs,
    "params": Params,
    "bytes": Bytes,
    "latency": Latency,
    "joules": Joules,
    "tolerance": Tolerance,
}


@dataclass(frozen=True, slots=True)
class Widths(_OneTarget):
    """Units to keep, by group; a group that is not named keeps all of its own."""

    widths: Mapping[str, Count]

    def __post_init__(self) -> None:
        """Refuse widths of no group."""
        if not self.widths:
            raise PruneError("target widths = {}: at least one group is needed")

    def __str__(self) -> str:
        return f"widths of {len(self.widths)} group{'' if len(self.widths) == 1 else 's'}"


TARGETS = (*SHARES, "widths")


def _kind(value: Any) -> str | None:
    if isinstance(value, Mapping):
        named = [key for key in value if key in TARGETS]
        return named[0] if len(named) == 1 else None
    return next((kind for kind in TARGETS if hasattr(value, kind)), None)


Target: TypeAlias = Annotated[
    Annotated[Macs, Tag("macs")]
    | Annotated[Params, Tag("params")]
    | Annotated[Bytes, Tag("bytes")]
    | Annotated[Latency, Tag("latency")]
    | Annotated[Joules, Tag("joules")]
    | Annotated[Tolerance, Tag("tolerance")]
    | Annotated[Widths, Tag("widths")],
    Discriminator(
        _kind,
        custom_error_type="target_kind",
        custom_error_message=f"name exactly one of {', '.join(TARGETS)}",
    ),
]


Allocation: TypeAlias = Literal["effective-rank", "equal-residual", "greedy", "uniform", "global-magnitude"]
CutShare = Annotated[float, Interval(gt=0.0, lt=1.0)]


BY_GRADIENTS: Final = ("taylor", "synflow")
"""What ``prune.units`` reads the gradients of all weights at once for."""


@section
class Prune:
    """The pruning: a target, reached by the widths of groups, the choice of units and compensation."""

    target: Target = field(default_factory=lambda: Macs(0.5))
    """One of ``macs``, ``params``, ``bytes``, ``latency``, ``joules``, ``tolerance``, ``widths``."""
    widths: Allocation = "greedy"
    """How the target is shared out among the groups; ``reports/one_shot.md`` chose the default.

    With quality ``best`` the default is held against ``uniform`` and ``equal-residual`` on calibration data
    held out, and the best of them kept. With ``uniform`` groups of one width keep one width, as a library's
    config requires of equal layers.
    """
    units: Literal[
        "interpolation",
        "pivoted-cholesky",
        "magnitude",
        "taylor",
        "synflow",
        "bn-scale",
        "lamp",
        "fpgm",
        "group-norm",
        "random",
    ] = "interpolation"
    """Which units of a group are kept: those from which the others follow best, by the error at the consumers
    or by pivoted Cholesky of their inputs; the others are importances, as torch-pruning has them, and
    SynFlow's, which reads no data."""
    calibration: Literal["data", "synthetic"] = "data"
    """On what units are chosen and layers fitted: items of the training split without labels, or
    ``synthetic``, items that a language model writes itself, or made up of the model's batch norms; then no
    item of the data is used for choosing or fitting, and nothing is repaired unless that is asked for."""
    calibration_items: Annotated[int, Interval(ge=8, le=2**20)] = 1024
    """How many items; of synthetic ones 512 at most."""
    round_to: Count | Literal["auto"] = "auto"
    """What widths are multiples of. ``auto``: of 8 where the dense width is 32 or more, of 4 from 16, of 2
    from 8, else of 1, and of less where the target is out of reach else: kernels are slow at other widths."""
    min_width: Count = 2
    max_pruning_ratio: CutShare = 0.95
    """No group loses more than this share of its units."""
    max_pruning_ratios: Mapping[str, CutShare] = field(default_factory=dict)
    """The same for groups whose name matches a pattern (``fnmatch``); the last that matches counts."""
    ignored_layers: tuple[str, ...] = ()
    """Patterns (``fnmatch``) of module names not to prune; one that matches nothing is an error."""
    embedding_width: bool | Literal["auto"] = "auto"
    """Prune the width of embeddings too, and of the residual stream that they feed. ``auto``: but in models
    of the transformers library, where runtimes and adapters know a model by that width."""
    head_width: bool = False
    """Also prune the width of attention heads: dimensions of queries and keys, by their singular values."""
    low_rank: bool | Literal["auto"] = False
    """Also split layers in two, of low rank: units reach a part of the target, ranks the rest, where that
    errs less on calibration data held out than units alone. ``auto``: and where a pass takes no longer, as
    measured here. For targets of ``macs`` and ``params``; a split layer is of another class."""
    compensate: bool = True
    """Compensate by least squares: consumers predict the outputs of pruned units from those of kept ones."""
    reconstruct: bool = True
    """With it, reconstruct layer by layer: solve each layer whose inputs changed for all of its weights."""
    activation_gib: Positive = 1.5
    """Most activations of both models held for that; of calibration data that need more, a part is used."""
    new_biases: bool | Literal["auto"] = "auto"
    """Allow compensation to give a consumer a bias that had none. ``auto``: but in models of the transformers
    library, whose configurations, and the runtimes that read them, know no such bias."""
    recalibrate: bool = True
    """Recompute batch-norm statistics on the calibration data where that lowers the output error there."""
    quality: Literal["fast", "balanced", "best"] = "balanced"
    """How much work goes into a ticket: ``fast`` has no repair, ``best`` repairs for as long as that brings
    anything. A note says what more would have brought."""
    repair: bool | Literal["auto"] = "auto"
    """Label-free repair: the ticket is distilled from the dense model. ``auto``: unless training follows."""
    repair_steps: Natural | Literal["auto"] = "auto"
    """Optimiser steps of the repair, 0 for none. ``auto``: 200 on training items; on calibration data alone
    so many that each item is seen a dozen times, and 200 at most."""
    repair_learning_rate: Positive | Literal["auto"] = "auto"
    """Adam's, at its highest. ``auto``: 3e-3, and a third of it, and so on, where that leads away."""
    gather: Literal["disk", "host"] | None = None
    """Where a model that is spread over processes (``train.spread``) is cut, by the first of them: ``disk``
    gathers it in files beside the run folders, a few layers at a time in memory, ``host`` in its host memory,
    which has to hold it several times. Then the ticket is spread again. Without it ``disk``."""
    rounds: Count = 1
    """Prunings in which the target is reached, each the same share of what is left."""
    round_epochs: Count = 1
    """Epochs of training between two rounds."""


def calibration_faults(prune: Prune) -> list[Fault]:
    """Return what stands in the way of calibration data that are made up."""
    if prune.calibration == "synthetic" and prune.units == "taylor":
        return [Fault("prune.units", "'taylor' reads labels, which items made up do not have")]
    return []


def low_rank_faults(prune: Prune) -> list[Fault]:
    """Return what stands in the way of layers of low rank."""
    faults = []
    if prune.low_rank and not isinstance(prune.target, Macs | Params):
        faults.append(Fault("prune.low_rank", f"needs a target of macs or params (found {prune.target})"))
    if prune.low_rank and not (prune.compensate and prune.reconstruct):
        faults.append(Fault("prune.low_rank", "needs prune.compensate and prune.reconstruct"))
    return faults
