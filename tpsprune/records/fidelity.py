"""How faithful a ticket is to its dense model: the figures of ``tpsprune fidelity``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Interval, Le

from tpsprune.records.serial import AtLeastZero, Natural, Text

Share = Annotated[float, Interval(ge=0.0, le=1.0)]
Explained = Annotated[float, Le(1.0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class OneModel:
    """What is read of either model: calibration, neural collapse, and how well it tells foreign inputs apart.

    ``calibration_error`` is in 15 bins. ``nc1`` to ``nc4`` are 0 where collapse is complete; ``nc3`` takes
    the last layer's weight. ``foreign_roc_area``: how likely the largest score of an item is above that of a
    foreign one, 0.5 by chance. ``None`` where ``Fidelity.absent`` says why.
    """

    quality: Explained | None = None
    calibration_error: Share | None = None
    nc1: AtLeastZero | None = None
    nc2_norms: AtLeastZero | None = None
    nc2_angles: AtLeastZero | None = None
    nc3: AtLeastZero | None = None
    nc4: Share | None = None
    foreign_roc_area: Share | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentField:
    """An autoencoder's outputs fed back to it, dense and ticket, beside dense weights shaken at random.

    Radii are spectral radii of the Jacobian, a mean over at most eight of the points that orbits end at:
    below 1 they attract. ``output_error`` is the root mean square by which the ticket's outputs differ from
    the dense model's; the shaken weights' differ by as much. Drift, by iterations, is the distance of the
    iterates from the dense model's over the spread of its outputs. ``same_basin`` is the share of items that
    end at the attractor that they end at in the dense model, ``None`` where ``Fidelity.absent`` says why.
    """

    items: Natural
    attractors: Natural
    dense_radius: AtLeastZero
    ticket_radius: AtLeastZero
    output_error: AtLeastZero
    drift: dict[str, AtLeastZero]
    shaken_drift: dict[str, AtLeastZero]
    same_basin: Share | None = None
    shaken_same_basin: Share | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """A ticket beside its dense model on the same items.

    ``outputs_explained``: R² of the dense model's outputs by the ticket's as they are. ``agreement``: share
    of items with the same class; ``divergence_nats``: mean KL(dense ‖ ticket). ``states_explained``: R² of
    what the dense model's last linear layer reads by an affine map of what the ticket's reads, on the half
    of the items that it was not fitted on. ``barrier_loss``, ``barrier_error``: by how much loss and error
    on the straight line between the two weights rise above the line between their ends. ``latent_field``
    is of autoencoders. ``absent`` has by figure why it is not there.
    """

    SCHEMA: ClassVar[str] = "tpsprune.fidelity/1"

    schema: Literal["tpsprune.fidelity/1"] = "tpsprune.fidelity/1"
    items: Natural
    split: Text
    dense: OneModel
    ticket: OneModel
    outputs_explained: Explained | None = None
    agreement: Share | None = None
    divergence_nats: AtLeastZero | None = None
    states_explained: Explained | None = None
    barrier_loss: AtLeastZero | None = None
    barrier_error: Share | None = None
    latent_field: LatentField | None = None
    foreign: str = ""
    cpu_seconds: AtLeastZero = 0.0
    absent: dict[str, str] = field(default_factory=dict)
