"""The ways of cutting that the benchmark puts side by side: ours, and torch-pruning's importances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from tpsprune.recipe.prune import Macs, Prune

Mend = Literal["as cut", "batch norm", "fold", "low rank"]
MENDS: tuple[Mend, ...] = get_args(Mend)[:3]
OURS = ("effective-rank", "equal-residual", "greedy", "uniform", "global-magnitude")
BASELINES = ("magnitude", "taylor", "bn-scale", "lamp", "fpgm", "group-norm", "random")
OURS_AGAIN = ("greedy", "uniform")
FOLDED_AGAIN = ("magnitude", "taylor", "random")
BASELINE_WIDTHS = ("uniform", "global-magnitude")
FOLDING = "folding"
"""Units merged, not removed (``one_shot_folding``); of nets with batch norm."""
LABELLED = {"taylor"}
TAKES_BATCH_NORM = {"bn-scale"}


@dataclass(frozen=True, slots=True)
class Method:
    """Which units stay, how widths are shared out, and what is mended before anyone retrains."""

    units: str
    widths: str
    mend: Mend

    @property
    def key(self) -> str:
        """Its name in the journal."""
        return f"{self.units}/{self.widths}/{self.mend}"

    @property
    def ours(self) -> bool:
        """Whether units are chosen by interpolation."""
        return self.units == "interpolation"

    @property
    def wants_labels(self) -> bool:
        """Whether the measure looks at a loss."""
        return self.units in LABELLED

    def settings(self, share: float, **more: object) -> Prune:
        """Return the settings that cut to ``share`` of the multiply-accumulates this way.

        A baseline as published neither compensates nor re-estimates batch norm; ours has the defaults.
        """
        return Prune(
            target=Macs(share),
            round_to=1,
            units=self.units,  # type: ignore[arg-type]
            widths=self.widths,  # type: ignore[arg-type]
            compensate=self.mend in ("fold", "low rank"),
            low_rank=self.mend == "low rank",
            recalibrate=self.mend != "as cut",
            **more,  # type: ignore[arg-type]
        )


def method_of(key: str) -> Method:
    """Return the method of a name in the journal."""
    units, widths, mend = key.split("/")
    return Method(units, widths, mend)  # type: ignore[arg-type]


def methods(*, batch_norm: bool, quick: bool = False, first: bool = True) -> list[Method]:
    """Return every method that a net can be cut by; without batch norm some make no sense.

    Our fold of a baseline's units is tried with uniform widths. On seeds after the ``first`` ours has the
    default and uniform widths, and three baselines are folded. ``quick`` keeps the first two baselines and
    one way of sharing out widths.
    """
    ours = [Method("interpolation", widths, "fold") for widths in (OURS if first else OURS_AGAIN)]
    ours.append(Method("interpolation", "greedy", "low rank"))
    mends = [mend for mend in MENDS if batch_norm or mend != "batch norm"]
    baselines = BASELINES[:2] if quick else BASELINES
    merged = [Method(FOLDING, "uniform", "batch norm")] if batch_norm else []
    return [*ours, *merged] + [
        Method(units, widths, mend)
        for units in baselines
        if batch_norm or units not in TAKES_BATCH_NORM
        for widths in (BASELINE_WIDTHS[:1] if quick else BASELINE_WIDTHS)
        for mend in mends
        if mend != "fold" or (widths == "uniform" and (first or units in FOLDED_AGAIN))
    ]


def default_widths() -> str:
    """Return how the package shares out widths when nobody says how."""
    return Prune().widths
