"""What a comparison came to: verdicts with reasons, intervals, ledgers. Everything that a report shows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, Literal

from annotated_types import Interval, Le
from pydantic import BeforeValidator, Field, WithJsonSchema

from tpsprune.records.comparison import ComparisonRecord, Design, Grid
from tpsprune.records.energy import EnergyMethod
from tpsprune.records.serial import AtLeastZero, Natural, Positive, Text

NOT_CLAIMED: Final = "not claimed"
"""What stands in the place of grams where no grid factor was chosen."""

MaybeInfinite = Annotated[
    float,
    BeforeValidator(lambda raw: float("nan") if raw is None else raw),
    WithJsonSchema({"type": ["number", "null"]}),
]
"""A number that may not be finite: a report has null there."""

Grams = Annotated[
    AtLeastZero | None,
    BeforeValidator(lambda raw: None if raw == NOT_CLAIMED else raw),
    WithJsonSchema({"anyOf": [{"type": ["number", "null"], "minimum": 0}, {"const": NOT_CLAIMED}]}),
]

_CLASS = "(measured|modelled|constant|simulated|chosen)"
ClassWords = Annotated[str, Field(pattern=rf"^(none|counted|{_CLASS}( \+ {_CLASS})*)$")]
"""The class of an energy figure of a report, or those of its parts; ``none`` where nothing was metered."""

Letter = Annotated[str, Field(pattern="^[A-ES-]$")]
"""A to E as metered, S simulated, ``-`` where nothing was metered."""

PartOfAll = Annotated[float, Interval(ge=0.0, le=1.001)]
"""A share of all joules: sums of floats may pass one by a rounding."""


class Standing(StrEnum):
    """Where a claim stands on the ladder; the first rung that does not hold decides."""

    INVALID_MEASUREMENT = "INVALID_MEASUREMENT"
    RUNS_BROKEN_OFF = "RUNS_BROKEN_OFF"
    INSUFFICIENT_RUNS = "INSUFFICIENT_RUNS"
    ACCURACY_NOT_PRESERVED = "ACCURACY_NOT_PRESERVED"
    WITHIN_NOISE = "WITHIN_NOISE"
    MODEL_SENSITIVE = "MODEL_SENSITIVE"
    SHORTER_SCHEDULE_DOES_AS_WELL = "SHORTER_SCHEDULE_DOES_AS_WELL"
    SMALLER_NET_DOES_AS_WELL = "SMALLER_NET_DOES_AS_WELL"
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

    code: Text
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How much less an arm took than its baseline, as a share of the baseline's; negative where more.

    ``saving_share`` is 1 − the geometric mean of the paired ratios, ``low`` and ``high`` bound its 95 %
    interval; ``arithmetic_share`` is 1 − the ratio of mean joules. ``deviation`` is the sample deviation of
    log-ratios; ``detectable_share`` the least saving that this many pairs show with power 0.8. ``p_holm`` is
    ``p_t`` corrected for all claims of the report.
    """

    saving_share: MaybeInfinite
    low: MaybeInfinite
    high: MaybeInfinite
    pairs: Natural
    deviation: MaybeInfinite
    p_t: MaybeInfinite
    p_sign_flip: MaybeInfinite
    detectable_share: MaybeInfinite
    arithmetic_share: MaybeInfinite
    p_holm: MaybeInfinite | None = None

    @property
    def means_agree(self) -> bool:
        """Whether the arithmetic mean is in the interval of the geometric one, and so of its sign."""
        rounding = 1e-9
        return self.low - rounding <= self.arithmetic_share <= self.high + rounding

    @property
    def reversing_share(self) -> float:
        """Share of the cheaper side's runs that would make the means equal if they took twice as long."""
        ratio = 1.0 - self.arithmetic_share
        return max(ratio, 1.0 / ratio) - 1.0

    @property
    def missing_share(self) -> float:
        """A kind that makes up this share of all runs is missing from so many with a probability of 5 %."""
        return 1.0 - float(0.05 ** (1.0 / self.pairs))


@dataclass(frozen=True, slots=True)
class BandPoint:
    """The saving as another power model has it."""

    model: Text
    saving_share: MaybeInfinite


@dataclass(frozen=True, slots=True)
class Support:
    """What else speaks for or against a saving: operations or processor seconds, counted."""

    what: Text
    saving_share: MaybeInfinite
    agrees: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One statement about one arm: ``kind`` is ``training`` or ``inference`` (then at ``batch``).

    Joules are means over counted pairs: of a whole training, or of one inference. ``energy_class`` are
    their classes. ``idle_subtracted`` is the change with the idle baseline taken off both, for information:
    the claim is made on the total. ``key`` is a name for programs, as ``training/ticket`` or
    ``inference-64/ticket``.
    """

    kind: Annotated[str, Field(pattern="^(training|inference)$")]
    arm: Text
    baseline: Text
    batch: Positive | None
    standing: Standing
    statement: str
    reasons: tuple[Reason, ...]
    energy_class: ClassWords
    joules: AtLeastZero | None
    baseline_joules: AtLeastZero | None
    change: Change | None
    idle_subtracted: Change | None
    band: tuple[BandPoint, ...]
    support: tuple[Support, ...]
    key: str = ""

    def __post_init__(self) -> None:
        """Make the key of what it is a key to."""
        kind = self.kind if self.batch is None else f"{self.kind}-{self.batch}"
        object.__setattr__(self, "key", f"{kind}/{self.arm}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Test accuracy of an arm and of its baseline over pairs, and whether it was preserved.

    Preserved: the one-sided 95 % lower bound of the mean difference is above −``tolerance_share``.
    ``lower_share`` is ``None`` below two pairs.
    """

    arm: Text
    baseline: Text
    pairs: Natural
    mean: float
    baseline_mean: float
    difference_share: float
    lower_share: float | None
    tolerance_share: float
    preserved: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmPoint:
    """What the models of an arm cost to train and how good they are: means over pairs, 95 % intervals.

    ``cost`` is in joules where all runs are metered (then ``joules`` is the same), else in seconds.
    """

    arm: Text
    pairs: Natural
    accuracy: float
    accuracy_low: float | None
    accuracy_high: float | None
    joules: AtLeastZero | None
    cost: AtLeastZero
    cost_low: AtLeastZero | None
    cost_high: AtLeastZero | None
    energy_class: ClassWords


@dataclass(frozen=True, slots=True)
class Answer:
    """What gives the best model for these joules: a sentence, and every arm that left models.

    ``front`` names the arms that no other beats in both, by their means, the cheapest first.
    """

    statement: str
    arms: tuple[ArmPoint, ...]
    front: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseMean:
    """What one phase of one arm took, mean over its counted runs."""

    arm: Text
    phase: Text
    joules: AtLeastZero | None
    seconds: AtLeastZero
    cpu_seconds: AtLeastZero
    energy_class: ClassWords


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the attribution: what changed from one arm to the next, and what that saved."""

    what: Text
    arm: Text
    baseline: Text
    change: Change | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """After how many inferences the arm's training has paid back: three numbers, or none and the reason.

    ``extra_joules`` is what its training took more than the baseline's (negative: less), ``saved_joules``
    what each inference takes less.
    """

    arm: Text
    batch: Positive
    extra_joules: float | None
    saved_joules: float | None
    inferences: AtLeastZero | None
    low: AtLeastZero | None
    high: AtLeastZero | None
    per_day: AtLeastZero | None
    days: AtLeastZero | None
    reason: str
    energy_class: ClassWords


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """How the joules of the counted runs were obtained, from A (wall meter) to E (mostly constants).

    Shares are of all joules of the counted runs; S stands for a simulated meter.
    """

    letter: Letter
    meaning: str
    measured_share: PartOfAll
    modelled_share: PartOfAll
    constant_share: PartOfAll


@dataclass(frozen=True, slots=True, kw_only=True)
class WallFit:
    """A wall meter compared with the software's figures: wall watts = slope · software watts + offset."""

    slope: float
    offset_watts: float
    r_squared: MaybeInfinite
    windows: Natural
    interval_seconds: AtLeastZero


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """The quality of the data: windows that broke an invariant, foreign load, runs set aside."""

    windows: Natural
    invalid: tuple[str, ...]
    foreign_load_share: float | None
    """The largest share of the machine that others took in a counted run, or in a window of inference."""
    steal_share: float | None
    idle_watts: AtLeastZero | None
    idle_spans: Natural
    hottest_gpu_celsius: float | None
    set_aside: tuple[str, ...]
    lost_joules: AtLeastZero | None
    """Energy of runs that were broken off or set aside: in no claim."""


@dataclass(frozen=True, slots=True)
class Needed:
    """To see a saving of ``saving_share`` with power 0.8 you need ``pairs`` (``None``: more than 1,000)."""

    saving_share: float
    pairs: Natural | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLine:
    """One run of the table of runs; ``counted`` is whether it is in any claim, ``why_not`` why not."""

    position: Natural
    pair: Natural
    arm: Text
    seed: int
    joules: AtLeastZero | None
    energy_class: ClassWords
    seconds: AtLeastZero
    cpu_seconds: AtLeastZero
    accuracy: Annotated[float, Le(1.0)] | None
    macs: Natural | None
    parameters: Natural | None
    epochs: AtLeastZero | None
    stopped_by: str
    counted: bool
    why_not: str
    grams_co2: Grams


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """A comparison assessed. ``claims[0]`` is the one that was fixed beforehand: it decides the verdict."""

    comparison: Annotated[ComparisonRecord, Field(exclude=True)]
    answer: Answer
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportVerdict:
    """What a report opens with."""

    key: Text
    standing: Standing
    statement: str
    grade: Letter
    energy_class: Annotated[ClassWords, Field(alias="class")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportStep(Step):
    """A step of the attribution, and the class of its joules."""

    energy_class: ClassWords


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportQuality(Quality):
    """The quality of the data, and the classes of its joules."""

    idle_energy_class: ClassWords
    lost_energy_class: ClassWords


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportNeeded(Needed):
    """Pairs that are needed, and the classes of the joules behind the number."""

    energy_class: ClassWords


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRun(RunLine):
    """A run with the rest of its record: its weights, what it was given, its notes, and when it drew."""

    weights_sha256: str
    given: str
    notes: tuple[str, ...]
    drawn_epoch: AtLeastZero | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportWallFit(WallFit):
    """A wall meter's fit, which is of measured joules."""

    energy_class: ClassWords


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportGrid(Grid):
    """The grid that grams are claimed with."""

    basis: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class NotCounted:
    """A run that is in no claim: ``why``, and its time and energy where they are known.

    Of a run that was broken off they are those of its whole windows: it took at least so much.
    """

    arm: Text
    seed: int
    pair: Natural | None
    position: Natural
    why: Text
    seconds: AtLeastZero | None
    joules: AtLeastZero | None
    energy_class: ClassWords


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What the runs were made on."""

    device: Text
    machine: dict[str, Any]
    versions: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SciUnit:
    """The functional unit of a software carbon intensity: one training of an arm."""

    unit: Text
    arm: Text
    runs: Natural


@dataclass(frozen=True, slots=True, kw_only=True)
class SciMissing:
    """A part of a software carbon intensity that is not known here."""

    what: Text
    why: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Sci:
    """The parts of a software carbon intensity that are known, by the letters of its standard."""

    standard: Text
    unit: Annotated[SciUnit, Field(alias="R")]
    kwh: Annotated[AtLeastZero | None, Field(alias="E_kwh")]
    energy_class: Annotated[ClassWords, Field(alias="E_class")]
    grams_per_kwh: Annotated[AtLeastZero | None, Field(alias="I_g_per_kwh")]
    operational_grams: Annotated[AtLeastZero | None, Field(alias="O_g")]
    embodied_grams: Annotated[None, Field(alias="M_g")]
    intensity: Annotated[None, Field(alias="SCI_g_per_R")]
    missing: tuple[SciMissing, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exports:
    """Of the verdict's arm, means over its counted runs; a simulated meter's energy is not exported."""

    training_joules: AtLeastZero | None
    energy_class: ClassWords
    co2_eq_emissions_g: Grams
    sci: Sci
    files: tuple[Text, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotEntry:
    """A plot of the report, and the class of its joules."""

    name: Literal["pairs", "claims", "phases", "history", "break_even", "accuracy", "models"]
    energy_class: Annotated[ClassWords, Field(alias="class")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """From what the report was made: command, recipe, journal."""

    command: str
    recipe_sha256: str
    journal_sha256: Text | None
    begun: str
    pairs_asked: Natural
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyReport:
    """``report.json``: what was assessed, by what rules, on what, metered how. No joules without a class."""

    SCHEMA: ClassVar[str] = "tpsprune.energy_report/1"

    schema: Literal["tpsprune.energy_report/1"]
    answer: Answer
    verdict: ReportVerdict
    grade: Grade
    claims: Annotated[tuple[Claim, ...], Field(min_length=1)]
    accuracies: tuple[Accuracy, ...]
    ledger: tuple[PhaseMean, ...]
    attribution: tuple[ReportStep, ...]
    break_even: tuple[BreakEven, ...]
    quality: ReportQuality
    needed: tuple[ReportNeeded, ...]
    runs: tuple[ReportRun, ...]
    may_claim: tuple[str, ...]
    may_not_claim: tuple[str, ...]
    complete: bool
    wall_fit: ReportWallFit | None
    design: Design
    environment: Environment
    method: tuple[EnergyMethod, ...]
    grid: Literal["not claimed"] | ReportGrid
    per_day: AtLeastZero | None
    not_counted: tuple[NotCounted, ...]
    exports: Exports
    plots: tuple[PlotEntry, ...]
    not_drawn: tuple[str, ...]
    provenance: Provenance
