"""Brackets and SCAN: by hand, by counting, by a slow twin; and the nets that learn them."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tpsprune.data import Dataset, load
from tpsprune.errors import RecipeError
from tpsprune.numerics.objective import IGNORED, Objective
from tpsprune.recipe.task import CustomData
from tpsprune.signals.updates import trained_parameters
from tpsprune_studies import nets, sequence_tasks
from tpsprune_studies.grammars import (
    ACTIONS,
    CLOSES,
    NO_BRACKET,
    OPENS,
    WORDS,
    bracket_depths,
    depths,
    sample_balanced,
    scan_commands,
    whole_sequences,
)

GRAMMARS = "tpsprune_studies.grammars"
COMMANDS = {" ".join(words): actions for words, actions in scan_commands()}
PER_PRIMITIVE = {"walk": "WALK", "look": "LOOK", "run": "RUN", "jump": "JUMP"}


def made(factory: str, loss: str, **data_args: Any) -> Dataset:
    """As a recipe loads it."""
    return load(CustomData(factory=f"{GRAMMARS}:{factory}", data_args=data_args), loss)


@given(st.integers(1, 40), st.integers(0, 2**32))
def test_brackets_never_close_more_than_is_open_and_end_closed(pairs: int, seed: int) -> None:
    brackets = sample_balanced(pairs, Random(seed))
    found = depths(torch.tensor([brackets]))[0].tolist()
    assert set(brackets) <= {OPENS, CLOSES}
    assert 2 <= len(brackets) <= 2 * pairs
    assert min(found) == 0 == found[-1]
    assert all(abs(later - earlier) == 1 for earlier, later in pairwise(found))


@given(st.lists(st.lists(st.sampled_from((OPENS, CLOSES, NO_BRACKET)), min_size=9, max_size=9), min_size=1))
def test_the_depth_is_what_was_opened_less_what_was_closed(rows: list[list[int]]) -> None:
    by_hand = [
        [row[: place + 1].count(OPENS) - row[: place + 1].count(CLOSES) for place in range(9)] for row in rows
    ]
    assert depths(torch.tensor(rows)).tolist() == by_hand


def test_pairs_are_uniform_and_a_free_choice_opens_as_often_as_published() -> None:
    rng = Random(1)
    found = [sample_balanced(2, rng) for _ in range(20_000)]
    counts = Counter(map(tuple, found))
    # One pair, half of the time; of two pairs the second bracket opens with probability 0.55.
    shares = {(0, 1): 0.5, (0, 0, 1, 1): 0.275, (0, 1, 0, 1): 0.225}
    assert {each: pytest.approx(count / 20_000, abs=0.01) for each, count in counts.items()} == shares


def test_the_published_sequences_have_every_depth_at_every_place() -> None:
    data = made("bracket_depths", "next-token")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [50, 1000, 4000]
    facts = data.facts
    assert (facts.input_kind, facts.input_shape, facts.classes, facts.vocabulary) == ("tokens", (24,), 13, 3)
    filled = data.train.inputs == NO_BRACKET
    assert torch.equal(data.train.labels == IGNORED, filled)
    assert torch.equal(data.train.labels[~filled], depths(data.train.inputs)[~filled])
    # As the author's code has them, counted there: 576 places, none deeper than nine.
    assert data.train.labels[~filled].bincount().tolist() == [121, 187, 106, 66, 45, 27, 11, 7, 5, 1]
    assert max(int(each.labels.max()) for each in (data.validation, data.test)) == 12
    torch.manual_seed(3)
    assert torch.equal(bracket_depths()["train"][0], data.train.inputs)
    assert not torch.equal(bracket_depths(split_seed=1)["train"][0], data.train.inputs)


def test_short_sequences_held_out_are_trained_on_as_often_as_is_said() -> None:
    data = made("bracket_depths", "next-token")
    known = set(map(tuple, data.train.inputs.tolist()))
    held_out = torch.cat([data.validation.inputs, data.test.inputs])
    is_known = torch.tensor([tuple(row) in known for row in held_out.tolist()])
    places = held_out != NO_BRACKET
    assert float(is_known.double().mean()) == pytest.approx(1 / 4, abs=0.01)
    assert float(places[is_known].sum() / places.sum()) == pytest.approx(1 / 12, abs=0.005)


def test_scan_has_as_many_commands_as_its_grammar_and_the_simple_split() -> None:
    # 34 phrases, each once, twice or thrice, and every two of those joined by "and" or by "after".
    assert len(COMMANDS) == len(list(scan_commands())) == 102 + 2 * 102**2 == 16_728 + 4_182
    lengths = Counter(len(command.split()) for command in COMMANDS)
    assert max(lengths) == 9
    assert lengths[1] == 4
    # Actions of the phrases: 4 + (8 · 2 + 2) + (8 · 3 + 2 · 2) + (8 · 8 + 2 · 4), times 1 + 2 + 3.
    single = 6 * (4 + 18 + 28 + 72)
    assert sum(map(len, COMMANDS.values())) == single + 2 * 2 * 102 * single
    assert max(map(len, COMMANDS.values())) == 48
    assert {word for command in COMMANDS for word in command.split()} == set(WORDS)
    assert {action for actions in COMMANDS.values() for action in actions} == set(ACTIONS)


@pytest.mark.parametrize(
    ("command", "actions"),
    [
        ("jump", "JUMP"),
        ("jump left", "LTURN JUMP"),
        ("turn right", "RTURN"),
        ("turn opposite left", "LTURN LTURN"),
        ("walk opposite left", "LTURN LTURN WALK"),
        ("turn around right", "RTURN RTURN RTURN RTURN"),
        ("jump around left twice", " ".join(["LTURN JUMP"] * 8)),
        ("run thrice and look right", "RUN RUN RUN RTURN LOOK"),
        ("run thrice after look right", "RTURN LOOK RUN RUN RUN"),
        ("turn left twice after run around right thrice", " ".join(["RTURN RUN"] * 12 + ["LTURN", "LTURN"])),
    ],
)
def test_commands_stand_for_the_actions_of_the_paper(command: str, actions: str) -> None:
    assert " ".join(COMMANDS[command]) == actions


def interpreted(command: str) -> list[str]:
    """A slow twin: reads the words of a command, as a parser would."""
    for joint in (" after ", " and "):
        if joint in command:
            first, second = (interpreted(part) for part in command.split(joint))
            return second + first if joint == " after " else first + second
    words = command.split()
    if words[-1] in ("twice", "thrice"):
        return interpreted(" ".join(words[:-1])) * (2 if words[-1] == "twice" else 3)
    does = [PER_PRIMITIVE[words[0]]] if words[0] != "turn" else []
    turn = {"left": ["LTURN"], "right": ["RTURN"]}.get(words[-1], [])
    if "around" in words:
        return (turn + does) * 4
    return turn * (2 if "opposite" in words else 1) + does


@given(st.sampled_from(sorted(COMMANDS)))
def test_every_command_means_what_a_parser_reads(command: str) -> None:
    assert list(COMMANDS[command]) == interpreted(command)


def test_what_is_written_is_what_follows_one_place_later() -> None:
    data = made("scan", "next-token", items=40, held_out=20, most_actions=6)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [40, 10, 10]
    seen = set()
    for split in (data.train, data.validation, data.test):
        command_nl, written_nl = split.inputs["command"], split.inputs["written"]
        assert command_nl.shape[1:] == (9,)
        assert written_nl.shape == split.labels.shape == (len(split), 7)
        for command, written, follows in zip(command_nl, written_nl, split.labels, strict=True):
            words = " ".join(WORDS[word - 1] for word in command.tolist() if word)
            actions = [ACTIONS[code - 3] for code in follows.tolist() if code >= 3]
            assert actions == interpreted(words)
            counted = len(actions) + 1
            assert written[0] == 1
            assert torch.equal(written[1:counted], follows[: counted - 1])
            assert follows[counted - 1] == 2
            assert (written[counted:] == 0).all()
            assert (follows[counted:] == IGNORED).all()
            seen.add(words)
    assert len(seen) == 60


@pytest.mark.parametrize(
    ("factory", "data_args", "words"),
    [
        ("bracket_depths", {"pairs": 0}, "pairs is 0; expected a whole number from 1 to 512"),
        ("bracket_depths", {"items": 0}, "items is 0; expected a whole number from 1 to"),
        ("bracket_depths", {"held_out": 1}, "validation_share: 0.2 of 1 items is 0; expected a share that"),
        ("scan", {"most_actions": 49}, "most_actions is 49; expected a whole number from 1 to 48"),
        (
            "scan",
            {"most_actions": 1, "items": 5, "held_out": 2},
            "5 items and 2 held out are more than the 6 that commands of at most 1 actions make",
        ),
    ],
)
def test_what_cannot_be_is_refused(factory: str, data_args: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        made(factory, "next-token", **data_args)
    assert words in str(caught.value)


def test_a_sequence_is_right_where_all_its_places_are() -> None:
    labels = torch.tensor([[1, 0, IGNORED], [1, 1, 0], [0, IGNORED, IGNORED]])
    scores = torch.zeros(3, 3, 2)
    scores[0, :, :] = torch.tensor([[0.0, 5.0], [5.0, 0.0], [0.0, 5.0]])
    scores[1, :, :] = torch.tensor([[0.0, 5.0], [0.0, 5.0], [0.0, 5.0]])
    scores[2, 0, 0] = 5.0
    found = whole_sequences(scores, labels)
    assert float(found["quality"]) == pytest.approx(2 / 3)
    assert float(found["loss"]) == pytest.approx(float(Objective("next-token").loss(scores, labels)))


@pytest.mark.parametrize(
    ("task", "attention"),
    [(sequence_tasks.DYCK, 131_072), (sequence_tasks.FULL_SCAN, 2_359_296)],
    ids=["Dyck-1", "SCAN"],
)
def test_nets_have_as_many_weights_of_attention_as_published(
    task: sequence_tasks.SequenceTask, attention: int
) -> None:
    model = getattr(nets, task.model)(**task.model_args)
    assert sum(each.numel() for each in trained_parameters(model, "attention")) == attention


def test_no_place_sees_a_later_one_nor_what_fills_up() -> None:
    torch.manual_seed(0)
    causal = nets.CausalTransformer(3, 6, 4, 8, 2, 2, 16).eval()
    tokens = torch.tensor([[0, 0, 1, 0, 1, 1]])
    changed = torch.tensor([[0, 0, 1, 1, 2, 2]])
    first, second = causal(tokens)[0], causal(changed)[0]
    assert torch.allclose(first[:3], second[:3], atol=1e-6)
    assert not torch.allclose(first[3:], second[3:], atol=1e-3)
    translator = nets.Translator(5, 4, (3, 6), width=8, layers=1, heads=2, mlp_width=16).eval()
    command, written = torch.tensor([[1, 2, 0]]), torch.tensor([[1, 3, 2, 3, 3, 0]])
    told = translator(command, written)[0]
    assert torch.allclose(told[:3], translator(command, torch.tensor([[1, 3, 2, 0, 0, 0]]))[0, :3], atol=1e-6)
    assert not torch.allclose(told, translator(torch.tensor([[1, 3, 0]]), written)[0], atol=1e-3)
    with torch.no_grad():
        translator.read.tokens.weight[0] = torch.arange(8.0)  # Not alike, which norms would take out.
    assert torch.allclose(told, translator(command, written)[0], atol=1e-6)
