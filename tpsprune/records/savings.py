"""What a comparison came to: verdicts with reasons, intervals, ledgers. Everything that a report shows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, ClassVar

from tpsprune.records.comparison import Comparison

__all__ = [
    "Accuracy",
    "BandPoint",
    "BreakEven",
    "Change",
    "Claim",
    "Grade",
    "Needed",
    "PhaseMean",
    "Quality",
    "Reason",
    "RunLine",
    "Savings",
    "Standing",
    "Step",
    "Support",
    "WallFit",
]


class Standing(StrEnum):
    """Where a claim stands on the ladder; the first rung that does not hold is the answer."""

    INVALID_MEASUREMENT = "INVALID_MEASUREMENT"
    INSUFFICIENT_RUNS = "INSUFFICIENT_RUNS"
    ACCURACY_NOT_PRESERVED = "ACCURACY_NOT_PRESERVED"
    WITHIN_NOISE = "WITHIN_NOISE"
    MODEL_SENSITIVE = "MODEL_SENSITIVE"
    SAVING_MODELLED = "SAVING_MODELLED"
    SAVING_MEASURED = "SAVING_MEASURED"
    SAVING_SIMULATED = "SAVING_SIMULATED"
    COST_INCREASE_MODELLED = "COST_INCREASE_MODELLED"
    COST_INCREASE_MEASURED = "COST_INCREASE_MEASURED"
    COST_INCREASE_SIMULATED = "COST_INCREASE_SIMULATED"

    @property
    def is_saving(self) -> bool:
        """Whether a saving may be claimed; of a simulated one nothing may."""
        return self in {Standing.SAVING_MODELLED, Standing.SAVING_MEASURED}

    @property
    def is_refusal(self) -> bool:
        """Whether nothing is claimed, neither a saving nor a cost."""
        return not str(self).startswith(("SAVING", "COST_INCREASE"))


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a claim stands where it stands: a code for programs, a sentence for people."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How much less an arm took than its baseline, as a share of the baseline's; negative where more.

    ``low`` and ``high`` bound the 95 % interval. ``deviation`` is the sample deviation of log-ratios;
    ``detectable_share`` the least saving that this many pairs show with power 0.8. ``p_holm`` is ``p_t``
    corrected for all claims of the report.
    """

    saving_share: float
    low: float
    high: float
    pairs: int
    deviation: float
    p_t: float
    p_sign_flip: float
    detectable_share: float
    p_holm: float | None = None


@dataclass(frozen=True, slots=True)
class BandPoint:
    """The saving as another power model has it."""

    model: str
    saving_share: float


@dataclass(frozen=True, slots=True)
class Support:
    """What else speaks for or against a saving: operations or processor seconds, counted."""

    what: str
    saving_share: float
    agrees: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One statement about one arm: ``kind`` is ``training`` or ``inference`` (then at ``batch``).

    Joules are means over counted pairs: of a whole training, or of one answer. ``energy_class`` says of
    what classes they are made. ``idle_subtracted`` is the same with the idle baseline taken off both, for
    information: the claim is made on the total.
    """

    kind: str
    arm: str
    baseline: str
    batch: int | None
    standing: Standing
    statement: str
    reasons: tuple[Reason, ...]
    energy_class: str
    joules: float | None
    baseline_joules: float | None
    change: Change | None
    idle_subtracted: Change | None
    band: tuple[BandPoint, ...]
    support: tuple[Support, ...]

    @property
    def key(self) -> str:
        """A name for programs, as ``training/ticket`` or ``inference-64/ticket``."""
        kind = self.kind if self.batch is None else f"{self.kind}-{self.batch}"
        return f"{kind}/{self.arm}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Test accuracy of an arm beside its baseline's over pairs, and whether it was preserved.

    Preserved: the one-sided 95 % lower bound of the mean difference is above −``tolerance_share``.
    ``lower_share`` is ``None`` below two pairs.
    """

    arm: str
    baseline: str
    pairs: int
    mean: float
    baseline_mean: float
    difference_share: float
    lower_share: float | None
    tolerance_share: float
    preserved: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseMean:
    """What one phase of one arm took, mean over its counted runs."""

    arm: str
    phase: str
    joules: float | None
    seconds: float
    cpu_seconds: float
    energy_class: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the attribution: what changed from one arm to the next, and what that saved."""

    what: str
    arm: str
    baseline: str
    change: Change | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """After how many answers the arm's training has paid back: three numbers, or none and the reason.

    ``extra_joules`` is what its training took more than the baseline's (negative: less), ``saved_joules``
    what each answer takes less.
    """

    arm: str
    batch: int
    extra_joules: float | None
    saved_joules: float | None
    inferences: float | None
    low: float | None
    high: float | None
    per_day: float | None
    days: float | None
    reason: str
    energy_class: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """How the joules of the counted runs were obtained, from A (wall meter) to E (mostly constants).

    Shares are of all joules of the counted runs; S stands for a simulated meter.
    """

    letter: str
    meaning: str
    measured_share: float
    modelled_share: float
    constant_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WallFit:
    """A wall meter held against the software's figures: wall watts = slope · software watts + offset."""

    slope: float
    offset_watts: float
    r_squared: float
    windows: int
    interval_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What the data are worth: windows that broke an invariant, neighbours, runs set aside."""

    windows: int
    invalid: tuple[str, ...]
    foreign_load_share: float | None
    """The largest share of the machine that others took in a counted run, or in a window of answers."""
    steal_share: float | None
    idle_watts: float | None
    idle_spans: int
    hottest_gpu_celsius: float | None
    set_aside: tuple[str, ...]
    lost_joules: float | None
    """Energy of runs that were broken off or set aside: in no claim."""


@dataclass(frozen=True, slots=True)
class Needed:
    """To see a saving of ``saving_share`` with power 0.8 you need ``pairs`` (``None``: more than 1,000)."""

    saving_share: float
    pairs: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLine:
    """One run as the table of runs shows it; ``counted`` says whether it is in any claim, ``why_not`` why."""

    position: int
    pair: int
    arm: str
    seed: int
    joules: float | None
    energy_class: str
    seconds: float
    cpu_seconds: float
    accuracy: float | None
    macs: int | None
    parameters: int | None
    epochs: float | None
    stopped_by: str
    counted: bool
    why_not: str
    grams_co2: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """A comparison assessed. ``claims[0]`` is the one that was fixed beforehand: it decides the verdict."""

    SCHEMA: ClassVar[str] = "tpsprune.energy_report/1"

    comparison: Comparison
    grade: Grade
    claims: tuple[Claim, ...]
    accuracies: tuple[Accuracy, ...]
    ledger: tuple[PhaseMean, ...]
    attribution: tuple[Step, ...]
    break_even: tuple[BreakEven, ...]
    quality: Quality
    needed: tuple[Needed, ...]
    runs: tuple[RunLine, ...]
    may_claim: tuple[str, ...]
    may_not_claim: tuple[str, ...]
    complete: bool
    wall_fit: WallFit | None = None

    @property
    def verdict(self) -> Claim:
        """The claim that the report opens with."""
        return self.claims[0]

    def to_json(self) -> dict[str, Any]:
        """Return everything that was assessed as plain JSON values, without the journal itself."""
        raw = asdict(self)
        del raw["comparison"]
        for claim, record in zip(raw["claims"], self.claims, strict=True):
            claim["key"] = record.key
        return raw
