"""Every rule of ``[stop]`` as a pure step: settings, memory and one round of readings in, verdict out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from tpsprune.recipe.stop import (
    ChangeRule,
    ConsensusRule,
    EpochRule,
    MaskRule,
    NoRule,
    PatienceRule,
    PlateauRule,
    ReopenRule,
    Rule,
    ThresholdRule,
)
from tpsprune.records import Reading, Verdict, load


@dataclass(frozen=True, slots=True)
class Nothing:
    """Of a rule that remembers nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guessed:
    """What guessing scores, and what the signal ``validation_accuracy`` is called in reasons."""

    chance: float
    quality: str = "accuracy"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlateauMemory(Guessed):
    """The last values, at most as many as the rule's patience."""

    window: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldMemory(Guessed):
    """For how many readings in a row a threshold has held."""

    held: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeMemory(Guessed):
    """The extreme so far, and for how many readings in a row it was far."""

    held: int
    extreme: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReopenMemory(Guessed):
    """The most before the collapse, and the least since; none before there was one."""

    most: float | None
    least: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PatienceMemory:
    """The best so far, and how many readings came since."""

    best: float | None
    stale: int


Simple: TypeAlias = Nothing | PlateauMemory | HeldMemory | ChangeMemory | ReopenMemory | PatienceMemory


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsensusMemory:
    """Each part's memory, and how many rounds ago it last agreed."""

    parts: tuple[Simple, ...]
    since: tuple[int | None, ...]


Memory: TypeAlias = Simple | ConsensusMemory
"""What a rule remembers between rounds; no two kinds have the same fields."""


@dataclass(frozen=True, slots=True)
class _Kept:
    memory: Memory


def recall(raw: object) -> Memory:
    """Return the memory that ``records.dump`` made JSON values of.

    Raises:
        ValueError: they are of none.
    """
    return load(_Kept, {"memory": raw}).memory


VALIDATION: Final = ("validation_loss", "validation_accuracy")
"""What is read of the validation split."""
PARALLEL: Final = 0.95
"""Mean cosine of hidden states above which items are not separated yet (Gopalani and Hu 2025)."""
_DIRECTIONS: Final = {"min": "fall", "max": "rise"}
_SIDES: Final = {"min": "below", "max": "above"}


def start(rule: Rule, *, chance_accuracy: float = 0.0, quality: str = "accuracy") -> Memory:
    """Return the memory of a rule that has seen nothing; ``chance_accuracy`` is the accuracy of guessing.

    ``quality`` is what the signal ``validation_accuracy`` is called in reasons.
    """
    if isinstance(rule, ConsensusRule):
        parts = tuple(_start(each, chance_accuracy, quality) for each in rule.rules)
        return ConsensusMemory(parts=parts, since=(None,) * len(parts))
    return _start(rule, chance_accuracy, quality)


def _start(rule: Rule, chance: float, quality: str) -> Simple:
    match rule:
        case PlateauRule():
            return PlateauMemory(window=(), chance=chance, quality=quality)
        case PatienceRule():
            return PatienceMemory(best=None, stale=0)
        case ThresholdRule() | MaskRule():
            return HeldMemory(held=0, chance=chance, quality=quality)
        case ChangeRule():
            return ChangeMemory(held=0, extreme=None, chance=chance, quality=quality)
        case ReopenRule():
            return ReopenMemory(most=None, least=None, chance=chance, quality=quality)
        case _:
            return Nothing()


def step(rule: Rule, memory: Memory, readings: Sequence[Reading]) -> tuple[Memory, Verdict]:
    """Let a rule see one round of readings, all of one step; return its new memory and its verdict.

    A round without a value of the rule's signal changes nothing: a missing value cannot decide.
    """
    match rule, memory:
        case ConsensusRule(), ConsensusMemory():
            return _consensus(rule, memory, readings)
        case _, ConsensusMemory():
            raise _foreign(rule, memory)
        case _:
            return _step(rule, memory, readings)


def needs_validation(rule: Rule, memory: Memory, readings: Sequence[Reading]) -> bool:
    """Return whether the verdict on a round, its reason or what is remembered hangs on the validation split.

    ``readings`` are the round's without it. A plateau that waits for something learned needs it once calm, a
    patience with the validation loss always, a rule of the epoch never.
    """
    parts = rule.rules if isinstance(rule, ConsensusRule) else (rule,)
    if any(getattr(part, "monitor", None) in VALIDATION for part in parts):
        return True
    worst, best = (
        step(rule, memory, [*readings, Reading.of("validation_accuracy", value, step=0, epoch=0.0)])
        for value in (0.0, 1.0)
    )
    return worst != best


def _step(rule: Rule, memory: Simple, readings: Sequence[Reading]) -> tuple[Simple, Verdict]:
    match rule, memory:
        case NoRule(), _:
            return memory, Verdict(False, "no rule: the budget decides")
        case EpochRule(), _:
            return memory, _epoch(rule, readings)
        case PlateauRule(), PlateauMemory():
            return _plateau(rule, memory, readings)
        case PatienceRule(), PatienceMemory():
            return _patience(rule, memory, readings)
        case ThresholdRule(), HeldMemory():
            return _threshold(rule, _SIDES[rule.mode], memory, readings)
        case MaskRule(), HeldMemory():
            return _threshold(rule, "below", memory, readings)
        case ChangeRule(), ChangeMemory():
            return _change(rule, memory, readings)
        case ReopenRule(), ReopenMemory():
            return _reopen(rule, memory, readings)
        case _:
            raise _foreign(rule, memory)


def _foreign(rule: Rule, memory: Memory) -> ValueError:
    return ValueError(f"a {type(rule).__name__} has no {type(memory).__name__}")


def describe(rule: Rule) -> str:
    """Return the rule as a short phrase, for journals and tables.

    >>> describe(EpochRule(epoch=5.0))
    'epoch 5'
    """
    match rule:
        case NoRule():
            return "none"
        case EpochRule():
            return f"epoch {rule.epoch:g}"
        case PlateauRule():
            return f"plateau of {rule.monitor} within {rule.tolerance:g} over {rule.patience}"
        case PatienceRule():
            return f"{rule.patience} readings without a {_DIRECTIONS[rule.mode]} of {rule.monitor}"
        case ThresholdRule():
            return f"{rule.monitor} {_SIDES[rule.mode]} {rule.threshold:g} for {rule.patience}"
        case MaskRule():
            return f"{rule.monitor} below {rule.threshold:g} for {rule.patience}"
        case ChangeRule():
            return f"{rule.monitor} {_DIRECTIONS[rule.mode]}s {rule.factor:g} times, for {rule.patience}"
        case ReopenRule():
            return f"{rule.monitor} down {rule.collapse:g} times and up {rule.reopen:g} times again"
        case ConsensusRule():
            return f"{rule.at_least} of: {'; '.join(map(describe, rule.rules))}"


def _value_of(signal: str, readings: Sequence[Reading]) -> float | None:
    return next((r.value for r in readings if r.signal == signal and not r.group), None)


def _missing(signal: str, readings: Sequence[Reading]) -> Verdict:
    mine = next((r for r in readings if r.signal == signal and not r.group), None)
    why = f"{mine.status}: {mine.reason}" if mine else "not read this time"
    return Verdict(False, f"{signal} has no value ({why})")


def _epoch(rule: EpochRule, readings: Sequence[Reading]) -> Verdict:
    epoch = max((r.epoch for r in readings), default=0.0)
    return Verdict(epoch >= rule.epoch, f"epoch {epoch:g} of the {rule.epoch:g} required")


def _plateau(
    rule: PlateauRule, memory: PlateauMemory, readings: Sequence[Reading]
) -> tuple[PlateauMemory, Verdict]:
    value = _value_of(rule.monitor, readings)
    if value is None:
        return memory, _missing(rule.monitor, readings)
    window = (*memory.window, value)[-rule.patience :]
    memory = replace(memory, window=window)
    spread = _relative_spread(window)
    span = f"{rule.monitor} {window[0]:.4g} → {window[-1]:.4g} over {len(window)} readings"
    if len(window) < rule.patience:
        return memory, Verdict(False, f"{span}, {rule.patience} are needed")
    if spread > rule.tolerance:
        return memory, Verdict(False, f"{span}: still moving (spread {spread:.3f} > {rule.tolerance:g})")
    calm = f"{span}: calm (spread {spread:.3f} ≤ {rule.tolerance:g})"
    return memory, _once_learned(rule.min_adjusted_accuracy, memory, readings, calm)


def _once_learned(needed: float, memory: Guessed, readings: Sequence[Reading], why: str) -> Verdict:
    """Act for a reason, unless nothing is learned yet: a memorising plateau is calm too."""
    if needed == 0.0:
        return Verdict(True, why)
    learned = _learned_share(memory.chance, _value_of("validation_accuracy", readings))
    covered = f"{learned:.2f} of the way from chance to 1"
    if learned < needed:
        return Verdict(
            False,
            f"{why}, but validation {memory.quality} has covered only {covered} ({needed:g} needed): a "
            "memorising plateau is calm too",
        )
    cosine = _value_of("collapse", readings)
    if cosine is not None and cosine > PARALLEL:
        return Verdict(
            False, f"{why}, but hidden states are nearly parallel (mean cosine {cosine:.3f} > {PARALLEL:g})"
        )
    return Verdict(True, f"{why}, and validation {memory.quality} has covered {covered}")


def _relative_spread(window: Sequence[float]) -> float:
    """Return (max − min) / |mean|; a constant window has none, even around zero."""
    spread = max(window) - min(window)
    mean = abs(sum(window) / len(window))
    if spread == 0.0:
        return 0.0
    return spread / mean if mean > 0.0 else float("inf")


def _learned_share(chance: float, accuracy: float | None) -> float:
    """Return how much of the way from guessing to 1 is covered; a missing value counts as none.

    Where guessing is right always there is no way to go, and all of it is covered.
    """
    if accuracy is None:
        return 0.0
    return (accuracy - chance) / (1.0 - chance) if chance < 1.0 else 1.0


def _patience(
    rule: PatienceRule, memory: PatienceMemory, readings: Sequence[Reading]
) -> tuple[PatienceMemory, Verdict]:
    value = _value_of(rule.monitor, readings)
    if value is None:
        return memory, _missing(rule.monitor, readings)
    sign = 1.0 if rule.mode == "max" else -1.0
    best, stale = memory.best, memory.stale + 1
    if best is None or sign * (value - best) > rule.min_delta:
        best, stale = value, 0
    reason = (
        f"{rule.monitor} {value:.4g}, best {best:.4g}, "
        f"{stale} of {rule.patience} readings without a {_DIRECTIONS[rule.mode]} of more than "
        f"{rule.min_delta:g}"
    )
    return PatienceMemory(best=best, stale=stale), Verdict(stale >= rule.patience, reason)


def _threshold(
    rule: ThresholdRule | MaskRule, side: str, memory: HeldMemory, readings: Sequence[Reading]
) -> tuple[HeldMemory, Verdict]:
    value = _value_of(rule.monitor, readings)
    if value is None:
        return memory, _missing(rule.monitor, readings)
    holds = value > rule.threshold if side == "above" else value < rule.threshold
    held = memory.held + 1 if holds else 0
    reason = (
        f"{rule.monitor} {value:.4g} {'is' if holds else 'is not'} {side} {rule.threshold:g}, "
        f"{held} of {rule.patience} readings in a row"
    )
    memory = replace(memory, held=held)
    if held < rule.patience:
        return memory, Verdict(False, reason)
    return memory, _once_learned(rule.min_adjusted_accuracy, memory, readings, reason)


def _change(
    rule: ChangeRule, memory: ChangeMemory, readings: Sequence[Reading]
) -> tuple[ChangeMemory, Verdict]:
    value = _value_of(rule.monitor, readings)
    if value is None:
        return memory, _missing(rule.monitor, readings)
    falls = rule.mode == "min"
    before = memory.extreme
    extreme = value if before is None else max(before, value) if falls else min(before, value)
    far = value * rule.factor <= extreme if falls else value >= rule.factor * extreme
    held = memory.held + 1 if far and value != extreme else 0
    memory = replace(memory, extreme=extreme, held=held)
    reason = (
        f"{rule.monitor} {value:.4g}, the {'most' if falls else 'least'} was {extreme:.4g}: "
        f"{held} of {rule.patience} readings at a {_DIRECTIONS[rule.mode]} of {rule.factor:g} times"
    )
    if held < rule.patience:
        return memory, Verdict(False, reason)
    return memory, _once_learned(rule.min_adjusted_accuracy, memory, readings, reason)


def _reopen(
    rule: ReopenRule, memory: ReopenMemory, readings: Sequence[Reading]
) -> tuple[ReopenMemory, Verdict]:
    value = _value_of(rule.monitor, readings)
    if value is None:
        return memory, _missing(rule.monitor, readings)
    most, least = memory.most, memory.least
    if least is None:
        most = value if most is None else max(most, value)
        if value * rule.collapse > most:
            reason = f"{rule.monitor} {value:.4g}, the most was {most:.4g}: no collapse yet"
            return replace(memory, most=most), Verdict(False, f"{reason} (by {rule.collapse:g} times)")
    least = value if least is None else min(least, value)
    memory = replace(memory, most=most, least=least)
    path = f"{rule.monitor} {most:.4g} → {least:.4g} → {value:.4g}"
    if value < rule.reopen * least or value == least:
        return memory, Verdict(False, f"{path}: collapsed, not open again (by {rule.reopen:g} times)")
    reason = f"{path}: collapsed and open again"
    return memory, _once_learned(rule.min_adjusted_accuracy, memory, readings, reason)


def _consensus(
    rule: ConsensusRule, memory: ConsensusMemory, readings: Sequence[Reading]
) -> tuple[ConsensusMemory, Verdict]:
    steps = [_step(*each, readings) for each in zip(rule.rules, memory.parts, strict=True)]
    since = tuple(
        0 if verdict.act else None if rounds is None else rounds + 1
        for (_, verdict), rounds in zip(steps, memory.since, strict=True)
    )
    memory = ConsensusMemory(parts=tuple(part for part, _ in steps), since=since)
    agree = [rounds is not None and rounds < rule.within for rounds in since]
    reasons = "; ".join(
        f"{'yes' if yes else 'no'}: {verdict.reason}" for yes, (_, verdict) in zip(agree, steps, strict=True)
    )
    count = sum(agree)
    return memory, Verdict(
        count >= rule.at_least, f"{count} of {len(agree)} rules agree, {rule.at_least} needed ({reasons})"
    )
