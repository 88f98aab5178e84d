"""A recipe written is a recipe read."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.recipe.test_read import LEAST
from tpsprune import recipe
from tpsprune.recipe.read import shipped_recipes
from tpsprune.recipe.task import (
    BracketsData,
    CustomData,
    Data,
    MlpModel,
    Model,
    ParityData,
    PermutationsData,
    TransformerModel,
)

DRAWN = st.integers(1, 2**22)
SEEDS = st.integers(0, 2**63 - 1)
SHARES = st.floats(0.001, 0.999)
STRUCTURED = (
    st.builds(
        PermutationsData,
        degree=st.integers(3, 5),
        relabel=st.booleans(),
        train_share=SHARES,
        split_seed=SEEDS,
    )
    | st.builds(
        ParityData,
        bits=st.integers(2, 4096),
        support=st.integers(1, 2**31),
        items=DRAWN,
        held_out=DRAWN,
        validation_share=SHARES,
        split_seed=SEEDS,
    )
    | st.builds(BracketsData, length=st.integers(2, 62), items=DRAWN, held_out=DRAWN, validation_share=SHARES)
)


def test_a_resolved_recipe_reads_back_equal() -> None:
    for name in shipped_recipes():
        read = recipe.read(name)
        assert recipe.parse(recipe.dumps(read), "again") == read


@given(
    shows=st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    seed=st.integers(0, 2**63 - 1),
    rate=st.floats(1e-12, 1e6),
    data_args=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
        st.recursive(
            st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5) | st.floats(-1e9, 1e9),
            lambda leaf: st.lists(leaf, max_size=3) | st.dictionaries(st.text(max_size=4), leaf, max_size=3),
            max_leaves=6,
        ),
        max_size=4,
    ),
)
def test_writing_and_reading_are_inverse(
    shows: str, seed: int, rate: float, data_args: dict[str, object]
) -> None:
    least = recipe.parse(LEAST, "r.toml")
    changed = replace(
        least,
        shows=shows,
        seed=seed,
        train=replace(least.train, learning_rate=rate),
        task=replace(least.task, data=CustomData(factory="a:b", data_args=data_args)),
    )
    assert recipe.parse(recipe.dumps(changed), "again") == changed


@given(
    data=STRUCTURED,
    model=st.builds(MlpModel, gated=st.booleans()) | st.builds(TransformerModel, layers=st.integers(1, 64)),
)
def test_structured_tasks_and_their_models_are_read_as_they_were_written(data: Data, model: Model) -> None:
    least = recipe.parse(LEAST, "r.toml")
    changed = replace(least, task=replace(least.task, data=data, model=model))
    assert recipe.parse(recipe.dumps(changed), "again") == changed
