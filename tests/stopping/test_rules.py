"""Rules are tested with lists of numbers: no model, no clock."""

from __future__ import annotations

import json
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpsprune import stopping
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
from tpsprune.records import Reading, Status, Verdict, dump

FINITE = st.floats(-1e6, 1e6, allow_nan=False)
RULES: list[Rule] = [
    NoRule(),
    EpochRule(epoch=3.0),
    PlateauRule(monitor="d_eff", patience=3, tolerance=0.05),
    PatienceRule(monitor="d_eff", patience=3),
    ThresholdRule(monitor="d_eff", threshold=0.5, patience=2),
    ReopenRule(monitor="d_eff", collapse=2.0, reopen=1.2),
    ConsensusRule(
        rules=(PlateauRule(patience=2), ThresholdRule(monitor="d_eff", threshold=0.0)), at_least=2, within=2
    ),
]


def round_of(index: int, value: float | None, accuracy: float = 1.0) -> list[Reading]:
    status = Status.OK if value is not None else Status.NOT_YET
    place = {"step": index, "epoch": float(index)}
    return [
        Reading(signal="d_eff", value=value, status=status, reason="too early", **place),
        Reading(signal="validation_accuracy", value=accuracy, **place),
    ]


def verdicts(rule: Rule, values: list[float | None], accuracies: list[float] | None = None) -> list[Verdict]:
    memory = stopping.start(rule, chance_accuracy=0.5)
    out = []
    for index, value in enumerate(values):
        accuracy = accuracies[index] if accuracies else 1.0
        memory, verdict = stopping.step(rule, memory, round_of(index, value, accuracy))
        out.append(verdict)
    return out


def first_act(rule: Rule, values: list[float | None], accuracies: list[float] | None = None) -> int | None:
    acts = [verdict.act for verdict in verdicts(rule, values, accuracies)]
    return acts.index(True) if True in acts else None


def test_no_rule_never_acts() -> None:
    assert first_act(NoRule(), [1.0] * 50) is None


def test_an_epoch_rule_acts_at_its_epoch() -> None:
    rule = EpochRule(epoch=3.0)
    assert first_act(rule, [1.0] * 6) == 3
    assert verdicts(rule, [1.0] * 4)[3].reason == "epoch 3 of the 3 required"


@given(start=st.floats(1.0, 100.0), ratio=st.floats(0.5, 0.9))
def test_a_plateau_rule_never_acts_while_the_signal_still_moves(start: float, ratio: float) -> None:
    falling: list[float | None] = [start * ratio**k for k in range(30)]
    assert first_act(PlateauRule(tolerance=0.05, patience=3), falling) is None


@given(patience=st.integers(2, 8), moving=st.integers(0, 6))
def test_a_plateau_rule_acts_after_exactly_its_patience(patience: int, moving: int) -> None:
    values: list[float | None] = [2.0**-k for k in range(moving)] + [1e-9] * (patience + 3)
    accuracies = [0.0, *[1.0] * (len(values) - 1)]
    rule = PlateauRule(tolerance=0.05, patience=patience)
    assert first_act(rule, values, accuracies) == moving + patience - 1


def test_a_memorising_plateau_does_not_fire_and_the_reason_names_it() -> None:
    rule = PlateauRule(patience=3)
    calm: list[float | None] = [5.0] * 20
    assert first_act(rule, calm, [0.6] * 20) is None
    assert (
        "validation accuracy has covered only 0.20 of the way from chance to 1 (0.5 needed): "
        "a memorising plateau is calm too"
    ) in verdicts(rule, calm, [0.6] * 20)[-1].reason
    assert first_act(rule, calm, [0.6] * 10 + [0.9] * 10) == 10


def test_a_verdict_carries_its_numbers() -> None:
    reason = verdicts(PlateauRule(patience=3), [8.0, 4.0, 4.1, 4.0], [0.1, 0.9, 0.9, 0.9])[3].reason
    assert reason == (
        "d_eff 4 → 4 over 3 readings: calm (spread 0.025 ≤ 0.05), "
        "and validation accuracy has covered 0.80 of the way from chance to 1"
    )


@given(patience=st.integers(1, 8), improving=st.integers(1, 6))
def test_a_patience_rule_acts_after_exactly_its_patience(patience: int, improving: int) -> None:
    values: list[float | None] = [-float(k) for k in range(improving)] + [0.0] * (patience + 2)
    assert first_act(PatienceRule(monitor="d_eff", patience=patience), values) == improving + patience - 1


def test_a_patience_rule_counts_a_gain_below_the_least_as_none() -> None:
    creeping: list[float | None] = [1.0 - 0.001 * k for k in range(10)]
    assert first_act(PatienceRule(monitor="d_eff", patience=3, min_delta=0.1), creeping) == 3
    assert first_act(PatienceRule(monitor="d_eff", patience=3), creeping) is None


def test_a_threshold_rule_wants_its_readings_in_a_row() -> None:
    rule = ThresholdRule(monitor="d_eff", threshold=0.5, patience=2)
    assert first_act(rule, [0.6, 0.4, 0.6, 0.4, 0.6, 0.7]) == 5
    below = ThresholdRule(monitor="d_eff", threshold=0.5, mode="min", patience=1)
    assert first_act(below, [0.6, 0.5, 0.4]) == 2


@pytest.mark.parametrize("rule", RULES[2:-1], ids=stopping.describe)
def test_a_round_without_a_value_changes_nothing_and_is_explained(rule: Rule) -> None:
    memory = stopping.start(rule)
    memory, _ = stopping.step(rule, memory, round_of(0, 1.0))
    after, verdict = stopping.step(rule, memory, round_of(1, None))
    assert after == memory
    assert not verdict.act
    assert verdict.reason == "d_eff has no value (not-yet-defined: too early)"


@pytest.mark.parametrize("rule", RULES, ids=stopping.describe)
@given(values=st.lists(FINITE, min_size=1, max_size=12), broken_at=st.integers(0, 12))
def test_memory_survives_a_checkpoint(rule: Rule, values: list[float], broken_at: int) -> None:
    memory = stopping.start(rule)
    straight, broken = [], []
    for index, value in enumerate(values):
        memory, verdict = stopping.step(rule, memory, round_of(index, value))
        straight.append(verdict)
    memory = stopping.start(rule)
    for index, value in enumerate(values):
        if index == broken_at:
            memory = stopping.recall(json.loads(json.dumps(dump(memory))))
        memory, verdict = stopping.step(rule, memory, round_of(index, value))
        broken.append(verdict)
    assert straight == broken


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (NoRule(), "none"),
        (PlateauRule(), "plateau of d_eff within 0.05 over 3"),
        (PatienceRule(patience=4), "4 readings without a fall of validation_loss"),
        (ThresholdRule(monitor="norm", threshold=2.0), "norm above 2 for 1"),
        (MaskRule(), "mask_distance below 0.1 for 1"),
        (ChangeRule(monitor="norm", factor=1.5), "norm falls 1.5 times, for 1"),
        (ReopenRule(), "spectral_edge down 4 times and up 1.5 times again"),
    ],
)
def test_a_rule_is_described_in_a_short_phrase(rule: Rule, words: str) -> None:
    assert stopping.describe(rule) == words


def test_a_rule_calls_the_quality_it_waits_for_by_its_name() -> None:
    rule = PlateauRule(monitor="d_eff", patience=2, tolerance=0.05)
    for accuracy, words in (
        (0.1, "but validation R² has covered only"),
        (0.9, "and validation R² has covered"),
    ):
        memory = stopping.start(rule, quality="R²")
        for index in range(2):
            memory, verdict = stopping.step(rule, memory, round_of(index, 0.5, accuracy))
        assert words in verdict.reason


def test_a_memory_without_a_quality_name_is_of_accuracy() -> None:
    rule = PlateauRule(monitor="d_eff", patience=2, tolerance=0.05)
    memory = stopping.recall({"window": [0.5], "chance": 0.5})
    _, verdict = stopping.step(rule, memory, round_of(1, 0.5, 1.0))
    assert "and validation accuracy has covered" in verdict.reason


def test_where_guessing_is_always_right_there_is_nothing_to_wait_for() -> None:
    rule = PlateauRule(monitor="d_eff", patience=2, tolerance=0.05)
    memory = stopping.start(rule, chance_accuracy=1.0)
    for index in range(2):
        memory, verdict = stopping.step(rule, memory, round_of(index, 0.5, 1.0))
    assert verdict.act


def judge(rule: Rule, *rounds: dict[str, float]) -> list[Verdict]:
    """Let a rule see rounds of readings by signal; chance is a half."""
    memory = stopping.start(rule, chance_accuracy=0.5)
    found = []
    for index, values in enumerate(rounds):
        readings = [
            Reading(signal=signal, value=value, step=index, epoch=float(index))
            for signal, value in values.items()
        ]
        memory, verdict = stopping.step(rule, stopping.recall(json.loads(json.dumps(dump(memory)))), readings)
        found.append(verdict)
    return found


def acts(rule: Rule, *rounds: dict[str, float]) -> list[bool]:
    return [verdict.act for verdict in judge(rule, *rounds)]


def edges(*values: float, accuracy: float = 1.0) -> list[dict[str, float]]:
    return [{"spectral_edge": value, "validation_accuracy": accuracy} for value in values]


def masks(*values: float, accuracy: float = 1.0) -> list[dict[str, float]]:
    return [{"mask_distance": value, "validation_accuracy": accuracy} for value in values]


def numbers(*values: float) -> list[dict[str, float]]:
    return [{"x": value} for value in values]


def change(mode: Literal["min", "max"], factor: float = 2.0, patience: int = 1) -> ChangeRule:
    return ChangeRule(monitor="x", mode=mode, factor=factor, patience=patience, min_adjusted_accuracy=0.0)


@pytest.mark.parametrize(
    ("rule", "rounds", "expected"),
    [
        (ReopenRule(collapse=4.0, reopen=1.5), edges(2.0, 75.0, 30.0, 19.0, 2.0, 2.9, 3.0), "0000001"),
        (ReopenRule(collapse=4.0), edges(2.0, 8.0, 2.1, 8.0, 9.0), "00000"),  # A quarter is a collapse.
        (ReopenRule(reopen=1.5), edges(10.0, 2.0, 1.0, 1.4), "0000"),  # Open is measured from the least.
        (ReopenRule(), [*edges(10.0, 2.0, 5.0, accuracy=0.6), *edges(5.0, accuracy=0.8)], "0001"),
        (change("min"), numbers(4.0, 8.0, 4.1, 4.0, 9.0), "00010"),
        (change("max", factor=3.0), numbers(4.0, 2.0, 5.9, 6.0), "0001"),
        (change("min", patience=2), numbers(8.0, 4.0, 5.0, 4.0, 3.0), "00001"),
        (change("max"), numbers(0.0, 0.0, 0.1), "001"),  # A signal at zero has not changed.
        (change("min"), numbers(0.0, 0.0), "00"),
        (MaskRule(), masks(0.3, 0.1, 0.09), "001"),
        (MaskRule(patience=2), masks(0.05, 0.3, 0.05, 0.05), "0001"),
        (MaskRule(), masks(0.0, accuracy=0.6), "0"),  # Memorising.
        (MaskRule(min_adjusted_accuracy=0.0), masks(0.0, accuracy=0.5), "1"),  # As published.
        (ThresholdRule(monitor="x", threshold=1.0), numbers(2.0), "1"),  # No accuracy is required.
    ],
)
def test_a_rule_acts_in_these_rounds_alone(rule: Rule, rounds: list[dict[str, float]], expected: str) -> None:
    assert "".join(str(int(acted)) for acted in acts(rule, *rounds)) == expected


def test_the_reason_gives_the_most_the_least_and_the_present() -> None:
    found = [verdict.reason for verdict in judge(ReopenRule(), *edges(10.0, 8.0, 2.0, 4.0))]
    assert found[1] == "spectral_edge 8, the most was 10: no collapse yet (by 4 times)"
    assert found[2] == "spectral_edge 10 → 2 → 2: collapsed, not open again (by 1.5 times)"
    assert found[3] == (
        "spectral_edge 10 → 2 → 4: collapsed and open again, and validation accuracy has covered 1.00 of "
        "the way from chance to 1"
    )


@given(st.lists(st.floats(1.0, 3.99), min_size=1, max_size=30))
def test_an_edge_that_never_falls_to_a_quarter_never_fires(values: list[float]) -> None:
    assert not any(acts(ReopenRule(collapse=4.0), *edges(*values)))


@given(st.lists(st.floats(0.1, 1.0), min_size=2, max_size=30))
def test_an_edge_that_only_falls_never_fires(values: list[float]) -> None:
    assert not any(acts(ReopenRule(), *edges(*sorted(values, reverse=True))))


def test_a_change_gives_its_numbers_and_waits_until_something_is_learned() -> None:
    found = judge(ChangeRule(monitor="x"), {"x": 8.0}, {"x": 2.0}, {"x": 2.0, "validation_accuracy": 0.9})
    assert found[0].reason == "x 8, the most was 8: 0 of 1 readings at a fall of 2 times"
    assert "covered only 0.00" in found[1].reason
    assert [each.act for each in found] == [False, False, True]


@pytest.mark.parametrize(
    "rule",
    [
        PlateauRule(monitor="x", patience=2),
        ThresholdRule(monitor="x", threshold=0.0, min_adjusted_accuracy=0.5),
        ReopenRule(monitor="x", collapse=2.0),
    ],
    ids=stopping.describe,
)
def test_hidden_states_that_are_nearly_parallel_hold_a_rule_back(rule: Rule) -> None:
    def rounds(cosine: float) -> list[dict[str, float]]:
        values = (9.0, 1.0, 4.0, 4.0)
        return [{"x": x, "validation_accuracy": 0.9, "collapse": cosine} for x in values]

    assert acts(rule, *rounds(0.90))[-1]
    found = judge(rule, *rounds(0.97))
    assert not any(each.act for each in found)
    assert "hidden states are nearly parallel (mean cosine 0.970 > 0.95)" in found[-1].reason


def above(signal: str) -> ThresholdRule:
    return ThresholdRule(monitor=signal, threshold=0.0)


@given(
    votes=st.lists(st.tuples(*[st.booleans()] * 3), min_size=1, max_size=12),
    at_least=st.integers(1, 3),
    within=st.integers(1, 4),
)
def test_a_consensus_is_a_count_of_who_agreed_of_late(
    votes: list[tuple[bool, bool, bool]], at_least: int, within: int
) -> None:
    rule = ConsensusRule(rules=tuple(map(above, "abc")), at_least=at_least, within=within)
    rounds = [{name: 1.0 if vote else -1.0 for name, vote in zip("abc", each, strict=True)} for each in votes]
    for index, acted in enumerate(acts(rule, *rounds)):
        late = votes[max(0, index + 1 - within) : index + 1]
        assert acted == (sum(any(each[k] for each in late) for k in range(3)) >= at_least)


def test_a_consensus_gives_the_verdict_of_each_of_its_rules() -> None:
    rule = ConsensusRule(rules=(EpochRule(epoch=1.0), above("x")))
    first, second = judge(rule, {"x": 1.0}, {"x": 2.0})
    assert first.reason.startswith("1 of 2 rules agree, 2 needed (no: epoch 0 of the 1 required; yes: x 1")
    assert second.act
    assert stopping.describe(rule) == "2 of: epoch 1; x above 0 for 1"


def test_a_consensus_counts_a_round_without_a_value_as_a_round() -> None:
    rule = ConsensusRule(rules=(above("x"), NoRule()), at_least=1, within=2)
    assert acts(rule, {"x": 1.0}, {"y": 1.0}, {"y": 1.0}) == [True, True, False]


@pytest.mark.parametrize(
    "raw", [None, [], {"held": "3", "chance": 0.5}, {"stale": 0}, {"best": 1.0, "stale": 0, "more": 1}]
)
def test_what_is_no_memory_is_refused(raw: object) -> None:
    with pytest.raises(ValueError, match="memory"):
        stopping.recall(raw)


def test_a_memory_of_another_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="a PlateauRule has no PatienceMemory"):
        stopping.step(
            PlateauRule(monitor="d_eff", patience=2, tolerance=0.05),
            stopping.start(PatienceRule(monitor="d_eff", patience=2)),
            round_of(0, 0.5),
        )


def _round(value: float, step: int = 1) -> list[Reading]:
    return [Reading.of(name, value, step=step, epoch=step / 10) for name in ("d_eff", "train_loss")]


@pytest.mark.parametrize(
    ("rule", "values", "needed"),
    [
        (NoRule(), [1.0, 1.0, 1.0], [False] * 3),
        (EpochRule(epoch=0.1), [1.0, 1.0], [False] * 2),
        (PatienceRule(monitor="validation_loss"), [1.0, 1.0], [True] * 2),
        (PatienceRule(monitor="train_loss"), [1.0, 1.0], [False] * 2),
        (ThresholdRule(monitor="validation_accuracy", threshold=0.5), [1.0], [True]),
        # Only once it is calm: three readings within the tolerance.
        (PlateauRule(monitor="d_eff", patience=3), [1.0, 5.0, 1.0, 1.0, 1.0], [False] * 4 + [True]),
        (PlateauRule(monitor="d_eff", patience=3, min_adjusted_accuracy=0.0), [1.0] * 4, [False] * 4),
        (
            ConsensusRule(rules=(PlateauRule(patience=2), EpochRule(epoch=9.0)), at_least=2, within=3),
            [1.0, 1.0],
            [False, True],
        ),
        (ConsensusRule(rules=(NoRule(), PatienceRule()), at_least=1), [1.0], [True]),
    ],
)
def test_validation_is_needed_where_a_verdict_its_reason_or_the_memory_hangs_on_it(
    rule: Rule, values: list[float], needed: list[bool]
) -> None:
    memory, found = stopping.start(rule, chance_accuracy=0.1), []
    for number, value in enumerate(values, start=1):
        found.append(stopping.needs_validation(rule, memory, _round(value, number)))
        memory, _ = stopping.step(rule, memory, _round(value, number))
    assert found == needed


@given(values=st.lists(FINITE, min_size=1, max_size=12), accuracies=st.lists(st.floats(0, 1), min_size=12))
def test_a_rule_that_is_told_only_what_it_needs_decides_as_one_that_is_told_all(
    values: list[float], accuracies: list[float]
) -> None:
    for rule in (*RULES, PlateauRule(patience=2, tolerance=0.5)):
        told = spared = stopping.start(rule, chance_accuracy=0.1)
        for number, value in enumerate(values, start=1):
            readings = _round(value, number)
            accuracy = Reading.of(
                "validation_accuracy", accuracies[number - 1], step=number, epoch=number / 10
            )
            needed = stopping.needs_validation(rule, spared, readings)
            told, full = stopping.step(rule, told, [*readings, accuracy])
            spared, short = stopping.step(rule, spared, [*readings, *([accuracy] if needed else [])])
            assert (told, full) == (spared, short)
