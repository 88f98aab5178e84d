from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tpsprune.numerics.moments import Elements
from tpsprune.records.readings import Status
from tpsprune.signals.condensation import Condensation, condensed_share
from tpsprune.signals.signal import View


def families_counted_slowly(rows: list[list[float]], tolerance: float) -> int:
    """Twins joined one by one."""

    def twins(a: list[float], b: list[float]) -> bool:
        lengths = [sum(x * x for x in each) ** 0.5 for each in (a, b)]
        if not all(lengths):
            return lengths[0] == lengths[1]
        return abs(sum(x * y for x, y in zip(a, b, strict=True))) / (lengths[0] * lengths[1]) >= 1 - tolerance

    families = [{unit} for unit in range(len(rows))]
    for i in range(len(rows)):
        for j in range(i):
            if twins(rows[i], rows[j]):
                mine = next(each for each in families if i in each)
                theirs = next(each for each in families if j in each)
                if mine is not theirs:
                    mine |= theirs
                    families.remove(theirs)
    return len(families)


def test_copies_scaled_and_negated_are_twins_and_one_of_each_family_stays() -> None:
    a, b = torch.eye(2)
    rows_ud = torch.stack([a, b, 3 * a, -2 * b, a])
    assert condensed_share(rows_ud) == pytest.approx(3 / 5)


def test_directions_at_right_angles_are_not_condensed() -> None:
    assert condensed_share(torch.eye(6)) == 0.0


def test_units_without_weights_are_twins_of_each_other_alone() -> None:
    rows_ud = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert condensed_share(rows_ud) == pytest.approx(1 / 4)


def test_a_chain_of_twins_is_one_family_in_any_order() -> None:
    angles = torch.tensor([0.0, 0.15, 0.3, 0.45])  # Neighbours alone are within the tolerance.
    rows_ud = torch.stack([angles.cos(), angles.sin()], 1)
    for order in ([0, 1, 2, 3], [3, 0, 2, 1], [1, 3, 0, 2]):
        assert condensed_share(rows_ud[order]) == pytest.approx(3 / 4)


def test_weights_that_are_not_finite_have_no_share() -> None:
    rows_ud = torch.eye(3)
    rows_ud[0, 0] = torch.inf
    assert condensed_share(rows_ud) != condensed_share(rows_ud)


@given(
    st.lists(st.tuples(*[st.integers(-2, 2)] * 3), min_size=1, max_size=9),
    st.floats(0.001, 0.3),
    st.integers(0, 99),
)
def test_the_share_is_that_of_the_slow_count_and_invariant(
    rows: list[tuple[int, int, int]], tolerance: float, seed: int
) -> None:
    rows_ud = torch.tensor(rows, dtype=torch.float32)
    found = condensed_share(rows_ud, tolerance)
    slow = families_counted_slowly([list(map(float, row)) for row in rows], tolerance + 1e-6)
    exact = families_counted_slowly([list(map(float, row)) for row in rows], tolerance - 1e-6)
    assert found in (pytest.approx(1 - slow / len(rows)), pytest.approx(1 - exact / len(rows)))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator)
    lengths = 2.0 ** torch.randint(-3, 4, (len(rows), 1), generator=generator)
    changed_ud = (rows_ud * lengths)[order][:, [2, 0, 1]]
    assert condensed_share(changed_ud, tolerance) == pytest.approx(found)


def written(width: int, inputs: Tensor) -> View:
    model = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))
    model[0].weight.data, model[0].bias.data = inputs[:, :3], inputs[:, 3]
    index_uf = torch.arange(width)[:, None]
    parts = (Elements("0.weight", 0, index_uf), Elements("0.bias", 0, index_uf))
    return View(model, (), 4, 2.0, {}, written={"0": parts})


def test_a_bias_tells_two_units_apart() -> None:
    same = torch.tensor([[1.0, 0, 0, 1], [2.0, 0, 0, 2]])
    other = torch.tensor([[1.0, 0, 0, 1], [1.0, 0, 0, -1]])
    for inputs, share in ((same, 0.5), (other, 0.0)):
        _, readings = Condensation().step(None, written(2, inputs))
        assert [(each.group, each.value) for each in readings] == [("0", share), ("", share)]


def test_without_groups_the_reading_says_so() -> None:
    _, (reading,) = Condensation().step(None, View(nn.Linear(2, 2), (), 0, 0.0, {}))
    assert reading.status is Status.NOT_APPLICABLE


def test_a_group_that_no_layer_writes_alone_says_so_and_the_others_are_read() -> None:
    seen = written(2, torch.tensor([[1.0, 0, 0, 1], [2.0, 0, 0, 2]]))
    both = View(seen.model, (), 0, 0.0, {}, written={"packed": (), **seen.written})
    _, readings = Condensation().step(None, both)
    assert [(each.group, each.status, each.value) for each in readings] == [
        ("packed", Status.NOT_APPLICABLE, None),
        ("0", Status.OK, 0.5),
        ("", Status.OK, 0.5),
    ]
    _, readings = Condensation().step(None, View(seen.model, (), 0, 0.0, {}, written={"packed": ()}))
    assert {each.status for each in readings} == {Status.NOT_APPLICABLE}
