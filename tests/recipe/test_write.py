"""Recipes as TOML: written and read again, and begun from answers."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.recipe.test_read import LEAST
from tpsprune import recipe
from tpsprune.errors import RecipeError
from tpsprune.recipe.read import shipped_recipes
from tpsprune.recipe.task import (
    CustomData,
    Data,
    MlpModel,
    Model,
    ModularData,
    TransformerModel,
)
from tpsprune.recipe.write import DATA, MODELS, Answers, Choice, Offer, choose, draft, misfit

SEEDS = st.integers(0, 2**63 - 1)
SHARES = st.floats(0.001, 0.999)
STRUCTURED = st.builds(
    ModularData, modulus=st.integers(3, 1024), relabel=st.booleans(), train_share=SHARES, split_seed=SEEDS
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


TARGETS = ["{ macs = 0.5 }", "{ params = 0.3 }", "{ latency = 0.7 }", "{ tolerance = 0.01 }"]


def taken(offer: Offer) -> Choice:
    value = {"path:target": "a.csv:column", "": ""}.get(offer.asks, "a-value")
    if offer.kind == "custom":
        value = "package.module:function"
    return Choice(offer, value)


def answers(model: Offer, data: Offer, target: str = TARGETS[0], epochs: int = 7) -> Answers:
    return Answers(name="mine", model=taken(model), data=taken(data), target=target, epochs=epochs)


@pytest.mark.parametrize("data", DATA, ids=lambda offer: offer.kind)
@pytest.mark.parametrize("model", MODELS, ids=lambda offer: offer.kind)
def test_every_pair_on_offer_reads(model: Offer, data: Offer) -> None:
    for target, epochs in itertools.product(TARGETS, (0, 7)):
        read = recipe.parse(draft(answers(model, data, target, epochs), "mine.toml"), "mine.toml")
        assert (read.task.model.kind, read.task.data.kind) == (model.kind, data.kind)
        assert read.train.epochs == max(epochs, 1)
        assert read.retrain.epochs == ("rest" if epochs else 0)
        assert str(read.prune.target).split("=")[0] in target


@pytest.mark.parametrize("data", DATA, ids=lambda offer: offer.kind)
@pytest.mark.parametrize("model", MODELS, ids=lambda offer: offer.kind)
def test_every_default_that_is_shown_may_be_uncommented(model: Offer, data: Offer) -> None:
    text = draft(answers(model, data), "mine.toml")
    lines = [
        re.sub(r"^# (?=[a-z_]+ = |\[)", "", line) if "FILE" not in line else line
        for line in text.splitlines()
    ]
    opened = "\n".join(lines)
    assert opened.count("\n#") < text.count("\n#")
    assert recipe.parse(opened, "mine.toml") == recipe.parse(text, "mine.toml")


def test_what_is_shipped_is_on_offer() -> None:
    kinds = {offer.kind for offer in MODELS}
    assert {"cnn", "resnet", "mlp", "transformer", "custom", "timm", "torchvision", "transformers"} <= kinds
    assert {"digits", "idx", "image-folder", "modular", "custom"} <= {offer.kind for offer in DATA}
    assert [offer.form for offer in MODELS if offer.kind in {"cnn", "timm", "custom"}] == [
        "cnn",
        "package.module:function",
        "timm:NAME",
    ]


@pytest.mark.parametrize(
    ("answer", "kind", "value"),
    [
        ("cnn", "cnn", ""),
        (" cnn ", "cnn", ""),
        ("timm:resnet18.a1_in1k", "timm", "resnet18.a1_in1k"),
        ("my_nets:make", "custom", "my_nets:make"),
        ("my.nets:Net.small", "custom", "my.nets:Net.small"),
        ("custom:my_nets:make", "custom", "my_nets:make"),
    ],
)
def test_an_answer_chooses_a_model(answer: str, kind: str, value: str) -> None:
    found = choose(answer, MODELS, "--model")
    assert (found.offer.kind, found.value) == (kind, value)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("cn", r"^--model: 'cn' is none of cnn, resnet, .* \(did you mean 'cnn'\?\)$"),
        ("timm", r"'timm' needs more; expected timm:NAME \(found 'timm'\)"),
        ("cnn:3", r"'cnn' takes nothing after it; expected cnn \(found 'cnn:3'\)"),
        ("custom:make", r"'make' is no dotted path; expected package.module:function"),
        ("my nets:make", r"'my nets:make' is none of"),
        ("", r"'' is none of"),
    ],
)
def test_an_answer_that_chooses_nothing_is_reported(answer: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        choose(answer, MODELS, "--model")


def test_a_model_that_cannot_take_the_data_is_reported() -> None:
    def reason(model: str, data: str) -> str:
        return misfit(choose(model, MODELS, "m"), choose(data, DATA, "d"))

    assert reason("cnn", "modular") == (
        "'cnn' takes images or grey images, 'modular' gives tokens; choose from mlp, transformer"
    )
    assert reason("torchvision:resnet18", "digits").startswith(
        "'torchvision' takes images, 'digits' gives grey"
    )
    assert not reason("cnn", "digits")
    assert not reason("my_nets:make", "modular")
    assert not reason("cnn", "my_data:load")


@pytest.mark.parametrize(
    ("answer", "lines"),
    [
        ("text:notes", ['loss = "next-token"', 'path = "notes"']),
        ("text:python-topics", ['loss = "next-token"', 'source = "python-topics"']),
        ("tabular:a.csv:price", ['path = "a.csv"', 'target = "price"', '# loss = "cross-entropy"']),
        ("tabular:C:/a.csv:price", ['path = "C:/a.csv"', 'target = "price"']),
        ("tabular:diabetes", ['loss = "mse"', 'source = "diabetes"']),
    ],
)
def test_texts_and_tables_come_from_a_file_or_from_what_is_at_hand(answer: str, lines: list[str]) -> None:
    found = Answers(
        name="mine",
        model=choose("mlp", MODELS, "m"),
        data=choose(answer, DATA, "d"),
        target=TARGETS[0],
        epochs=1,
    )
    text = draft(found, "mine.toml")
    assert set(lines) <= set(text.splitlines())
    recipe.parse(text, "mine.toml")


@pytest.mark.parametrize("answer", ["tabular:a.csv", "tabular:a.csv:", "tabular:wines"])
def test_a_table_without_a_column_to_tell_is_refused(answer: str) -> None:
    with pytest.raises(RecipeError, match=r"expected tabular:PATH:TARGET or tabular:breast-cancer, "):
        choose(answer, DATA, "--data")


def test_a_text_is_no_thing_for_a_net_of_images() -> None:
    reason = misfit(choose("cnn", MODELS, "m"), choose("text:notes", DATA, "d"))
    assert reason.endswith("'text' gives text; choose from transformers, custom")
