from __future__ import annotations

import pytest

from tpsprune.tps.harm import coherence_warning, order_warning


def test_coherence_that_stays_while_the_loss_falls_is_worth_a_sentence() -> None:
    assert coherence_warning([0.11, 0.12, 0.12], [3.9, 1.2, 0.4]) == (
        "tps: coherence stays at 0.12 while the training loss fell from 3.9 to 0.4: the tokens may not be in"
        " cyclic order; consider variant 'labels' or 'none'"
    )


@pytest.mark.parametrize(
    ("coherences", "losses"),
    [
        pytest.param([0.10, 0.11, 0.13], [3.9, 1.2, 0.4], id="coherence rises by enough"),
        pytest.param([0.12, 0.12, 0.12], [3.9, 3.5, 2.7], id="the loss falls by less than a third"),
        pytest.param([0.97, 0.97, 0.97], [3.9, 1.2, 0.4], id="coherence is high already"),
        pytest.param([0.12, 0.12], [3.9, 0.4], id="two readings are too few"),
        pytest.param([], [], id="no readings"),
    ],
)
def test_there_is_no_sentence_where(coherences: list[float], losses: list[float]) -> None:
    assert coherence_warning(coherences, losses) is None


def test_falling_coherence_is_worth_the_sentence_too() -> None:
    assert coherence_warning([0.4, 0.3, 0.2], [3.0, 2.5, 2.0]) is not None


def test_labels_out_of_order_are_worth_a_sentence_and_labels_in_order_are_not() -> None:
    assert order_warning(1.0) is None
    assert order_warning(0.1) == (
        "tps: the training labels follow the tokens' cyclic order to 0.10 only, where 1 is wholly:"
        " consider variant 'labels' or 'none'"
    )
