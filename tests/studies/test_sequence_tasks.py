"""The published gap in closed form, and the published tasks by a recipe and by the study."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.studies.conftest import small_recipe
from tpsprune import recipe
from tpsprune_studies import sequence_tasks
from tpsprune_studies.sequence_tasks import GAP, PLACE, AttentionGap, SequenceTask
from tpsprune_studies.setup import prepare

RECIPE = """
name = "brackets"

[task]
loss = "next-token"

[task.data]
kind = "custom"
factory = "tpsprune_studies.grammars:bracket_depths"
data_args = { pairs = 4, items = 20, held_out = 20 }

[task.model]
kind = "custom"
factory = "tpsprune_studies.nets:CausalTransformer"
model_args = { vocabulary = 3, length = 8, classes = 5, width = 16, layers = 1, heads = 2, mlp_width = 32 }

[train]
epochs = 80
batch_size = "full"
learning_rate = 0.01
threads = 1
"""


class OneMatrix(nn.Module):
    """A matrix of attention, and one that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(2, 2)
        self.mlp = nn.Linear(2, 2)


def move(model: OneMatrix, place: int, by: float) -> None:
    with torch.no_grad():
        model.q.weight.view(-1)[place] += by
        model.mlp.weight += 10.0
        model.q.bias += 10.0


def test_the_gap_of_updates_at_right_angles_is_that_of_their_lengths() -> None:
    model = OneMatrix()
    gap = AttentionGap(model, window=3, seed=0)
    readings = []
    for place, by in enumerate((1.0, 3.0, 2.0, 6.0)):
        move(model, place, by)
        readings.append(dict(gap.read()))
    # Lengths 3, 2, 1 fall off most behind the second, then 6, 3, 2 behind the first.
    assert readings[:2] == [{}, {}]
    assert readings[2] == {GAP: pytest.approx(3.0, rel=1e-5), PLACE: 2.0}
    assert readings[3] == {GAP: pytest.approx(5.0, rel=1e-5), PLACE: 1.0}


def test_updates_of_one_direction_have_no_gap_behind_the_first() -> None:
    model = OneMatrix()
    gap = AttentionGap(model, window=3, seed=0)
    for by in (1.0, 2.0, 4.0):
        move(model, 0, by)
        found = dict(gap.read())
    assert found[GAP] == pytest.approx(0.0, abs=1e-4)
    assert found[PLACE] == 1.0


def test_a_recipe_names_the_data_and_the_net_learns_the_depth_of_every_place(tmp_path: Path) -> None:
    path = tmp_path / "dyck.toml"
    path.write_text(RECIPE)
    prepared = prepare(recipe.read(str(path)))
    before = prepared.evaluate(prepared.dataset.train)
    for _ in prepared.fit(80):
        pass
    after = prepared.evaluate(prepared.dataset.train)
    assert after.loss < before.loss / 5
    assert after.accuracy > 0.9


@pytest.mark.parametrize("arm", list(sequence_tasks.TASKS))
def test_seeds_draw_weights_and_leave_the_published_data_as_they_are(arm: str) -> None:
    task: SequenceTask = sequence_tasks.TASKS[arm]
    first, second = (prepare(task.make_recipe(small_recipe(), seed)) for seed in (1, 2))
    assert torch.equal(first.dataset.train.labels, second.dataset.train.labels)
    assert not torch.equal(next(first.model.parameters()), next(second.model.parameters()))
    settings = first.recipe.train
    assert settings.weight_decay == (1.0 if task.learns else 0.0)
    assert (settings.betas, settings.clip_norm, settings.schedule) == ((0.9, 0.98), 1.0, "constant")
