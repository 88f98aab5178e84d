"""Which loss goes with which data, told before anything is loaded."""

from __future__ import annotations

import pytest

from tests.recipe.test_read import LEAST, faults
from tpsprune import recipe
from tpsprune.recipe.task import TabularData, TextData, labels_wanted

CUSTOM = 'task.data={kind="custom", factory="a:b"}'
TEXT = 'task.data={kind="text", source="python-topics"}'
WINE = 'task.data={kind="tabular", source="wine"}'
DIABETES = 'task.data={kind="tabular", source="diabetes"}'
FILE = 'task.data={kind="tabular", path="a.csv", target="y"}'
OWN = "task.loss=theirs:loss"


@pytest.mark.parametrize(
    "overrides",
    [
        ("task.loss=cross-entropy",),
        (OWN,),
        (CUSTOM, "task.loss=mse"),
        (CUSTOM, "task.loss=bce"),
        (CUSTOM, "task.loss=next-token", "train.label_smoothing=0.1"),
        (TEXT, "task.loss=next-token"),
        (TEXT, OWN),
        (WINE,),
        (WINE, OWN),
        (DIABETES, "task.loss=mse"),
        (FILE, "task.loss=mse"),
        (FILE,),
        (FILE, OWN, "task.data.labels=numbers"),
    ],
    ids=str,
)
def test_a_loss_that_goes_with_its_data_is_read_and_written_again(overrides: tuple[str, ...]) -> None:
    read = recipe.parse(LEAST, "r.toml", overrides)
    assert recipe.parse(recipe.dumps(read), "again") == read


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ("task.loss=mae",),
            "task.loss: unknown loss 'mae' (did you mean 'mse'?); or a function of your own,",
        ),
        (
            ("task.loss=zzz",),
            "task.loss: unknown loss 'zzz' (known: cross-entropy, bce, next-token, mse); or",
        ),
        (
            ("task.loss=mse",),
            "task.loss: data of kind 'digits' have a class for a label: 'cross-entropy', or a",
        ),
        (
            (TEXT,),
            "task.loss: data of kind 'text' have the next byte for a label at every place: 'next-token',",
        ),
        (
            (WINE, "task.loss=mse"),
            "task.loss: the target holds classes: 'cross-entropy', or a function of your",
        ),
        ((DIABETES,), "task.loss: the target holds numbers: 'mse', or a function of your own"),
        (
            (WINE, "task.loss=bce"),
            "task.loss: data of kind 'tabular' have one label a row: 'cross-entropy' or",
        ),
        ((WINE, "task.data.labels=numbers"), "task.data.labels: the target of 'wine' holds classes (found"),
        ((FILE, "task.data.labels=numbers"), "task.loss: the target holds numbers: 'mse', or a function of"),
        (
            (FILE, OWN),
            "task.data.labels: with a loss of your own say what the target is: 'classes' or 'numbers'",
        ),
        (('task.data={kind="tabular"}',), "task.data: give path or source, one of the two"),
        (
            (f'{TEXT[:-1]}, path="a.txt"}}', "task.loss=next-token"),
            "task.data: give path or source, one of the",
        ),
        (
            ('task.data={kind="tabular", path="a.csv"}',),
            "task.data.target: required beside path, but not given:",
        ),
        (
            (f'{WINE[:-1]}, target="y"}}',),
            "task.data.target: is read beside path only (here source = 'wine')",
        ),
        (
            (f'{WINE[:-1]}, leave_out=["y"]}}',),
            "task.data.leave_out: is read beside path only (here source =",
        ),
        (
            (CUSTOM, "task.loss=mse", "train.label_smoothing=0.1"),
            "train.label_smoothing: has no meaning with loss 'mse': 0 would do (found 0.1)",
        ),
        (
            (OWN, "train.label_smoothing=0.1"),
            "train.label_smoothing: has no meaning with loss 'theirs:loss':",
        ),
        (
            ('task.data={kind="tabular", source="iris"}',),
            "task.data.source: must be 'breast-cancer', 'wine' or",
        ),
        (
            ('task.data={kind="text", length=0}',),
            "task.data.length: must be greater than or equal to 1 (found 0)",
        ),
    ],
)
def test_a_loss_that_does_not_go_with_its_data_is_one_fault_with_what_would_do(
    overrides: tuple[str, ...], words: str
) -> None:
    found = faults(LEAST, *overrides)
    assert len(found) == 1, found
    assert found[0].startswith(words), found


def test_a_target_is_read_as_the_loss_wants_it_or_as_is_said() -> None:
    assert labels_wanted(TabularData(path="a"), "cross-entropy") == "classes"
    assert labels_wanted(TabularData(path="a"), "mse") == "numbers"
    assert labels_wanted(TabularData(path="a", labels="numbers"), "theirs:loss") == "numbers"


def test_a_text_has_windows_of_sixty_four_bytes() -> None:
    read = recipe.parse(LEAST, "r.toml", (TEXT, "task.loss=next-token"))
    assert isinstance(read.task.data, TextData)
    assert read.task.data.length == 64
