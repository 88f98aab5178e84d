"""Languages made by rules, each for ``kind = "custom"``: the depth of brackets at every place, and SCAN.

    [task]
    loss = "next-token"

    [task.data]
    kind = "custom"
    factory = "tpsprune_studies.grammars:bracket_depths"

``split_seed`` among ``data_args`` samples items and splits; ``validation_share`` is the share of what is held
out that decisions use, the rest is the test. Shapes: n items, l places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from random import Random
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from tpsprune.numerics.forward import logits_of
from tpsprune.numerics.objective import IGNORED
from tpsprune_studies.tasks import LISTED, divide_held_out, require_between, require_room

OPENS, CLOSES, NO_BRACKET = range(3)
OPENING_SHARE: Final = 0.55
"""How likely a bracket opens where it might close, as published."""
PRIMITIVES: Final = ("walk", "look", "run", "jump")
SIDES: Final = ("left", "right")
TIMES: Final[Mapping[str, int]] = {"": 1, "twice": 2, "thrice": 3}
ACTIONS: Final = ("WALK", "LOOK", "RUN", "JUMP", "LTURN", "RTURN")
WORDS: Final = (*PRIMITIVES, *SIDES, "turn", "opposite", "around", "twice", "thrice", "and", "after")
PAD, START, END = range(3)
"""What stands beside words and actions: nothing, the begin of what is written, its end."""


def bracket_depths(
    pairs: int = 12,
    items: int = 50,
    held_out: int = 5000,
    validation_share: float = 0.2,
    *,
    split_seed: int = 0,
) -> Mapping[str, Any]:
    """Return balanced sequences of brackets, up to so many pairs, and the depth after every bracket.

    Token 0 opens, 1 closes, 2 fills up to 2 · ``pairs`` places. The class of a place is its depth, of which
    there are ``pairs`` + 1, and −100 where it is filled up: for loss ``next-token``. ``items`` are trained
    on.

    Sampled as published: the number of pairs uniform, a bracket that might do either opens with probability
    0.55; with ``split_seed`` 0, the published one, 12 pairs and 5,050 sequences in all they are the published
    sequences, divided as there. Short ones come more than once, so that a quarter of those held out, with a
    twelfth of the places, are trained on too.

    Raises:
        DataError: an argument is out of bounds, or a split would be empty.

    Source: Xu 2026 (arXiv:2602.16967), its code.
    """
    require_between("pairs", pairs, 1, 512)
    require_between("items", items, 1, LISTED)
    require_between("held_out", held_out, 1, LISTED)
    rng = Random(split_seed)
    brackets_nl = _pad([sample_balanced(pairs, rng) for _ in range(items + held_out)], 2 * pairs, NO_BRACKET)
    order_n = torch.randperm(len(brackets_nl), generator=torch.Generator().manual_seed(split_seed))
    brackets_nl = brackets_nl[order_n]
    depths_nl = depths(brackets_nl).masked_fill(brackets_nl == NO_BRACKET, IGNORED)
    return {
        **divide_held_out(brackets_nl, depths_nl, items, validation_share),
        "classes": pairs + 1,
        "vocabulary": 3,
        "input_kind": "tokens",
    }


def sample_balanced(pairs: int, rng: Random) -> list[int]:
    """Return a balanced sequence of 1 to ``pairs`` pairs.

    >>> sample_balanced(1, Random(0))
    [0, 1]
    """
    brackets: list[int] = []
    to_open = rng.randint(1, pairs)
    depth = 0
    while to_open or depth:
        # A number is drawn only where there is a choice: so were the published sequences.
        opens = to_open > 0 and (depth == 0 or rng.random() < OPENING_SHARE)
        brackets.append(OPENS if opens else CLOSES)
        to_open -= opens
        depth += 1 if opens else -1
    return brackets


def depths(brackets_nl: Tensor) -> Tensor:
    """Return how many brackets are open after every place (n, l); what fills up opens and closes nothing.

    >>> depths(torch.tensor([[0, 0, 1, 0, 1, 1, 2, 2]])).tolist()
    [[1, 2, 1, 2, 1, 0, 0, 0]]
    """
    return ((brackets_nl == OPENS).long() - (brackets_nl == CLOSES).long()).cumsum(1)


def scan_commands() -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Yield every command of SCAN and the actions that it stands for, all 20,910.

    C → S and S | S after S | S; S → V twice | V thrice | V; V → D | U | D₁ opposite D₂ | D₁ around D₂;
    D → U left | U right | turn left | turn right; U → walk | look | run | jump. ``x left`` is LTURN x;
    opposite turns twice before x, around turns and does x four times; ``a after b`` is b, then a.

    Source: Lake and Baroni 2018 (arXiv:1711.00350), figures 1 and 7.
    """
    single = [
        ((*words, *([times] if times else [])), actions * count)
        for words, actions in _phrases()
        for times, count in TIMES.items()
    ]
    yield from single
    for (first, does_first), (second, does_second) in product(single, repeat=2):
        yield (*first, "and", *second), does_first + does_second
        yield (*first, "after", *second), does_second + does_first


def _phrases() -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Yield the 34 phrases that ``twice`` and ``thrice`` repeat, with their actions."""
    for verb in (*PRIMITIVES, "turn"):
        does = (verb.upper(),) if verb in PRIMITIVES else ()
        if does:
            yield (verb,), does
        for side, turn in zip(SIDES, ("LTURN", "RTURN"), strict=True):
            yield (verb, side), (turn, *does)
            yield (verb, "opposite", side), (turn, turn, *does)
            yield (verb, "around", side), (turn, *does) * 4


def scan(
    items: int = 2048,
    held_out: int = 500,
    most_actions: int = 48,
    validation_share: float = 0.5,
    *,
    split_seed: int = 0,
) -> Mapping[str, Any]:
    """Return commands of SCAN, what is written of their actions, and at every place the action that follows.

    Inputs are ``command`` (n, 9) and ``written`` (n, ``most_actions`` + 1), which begins with 1; labels are
    the actions, then 2, −100 behind. 0 fills up. Commands of more actions than ``most_actions`` are left out,
    none comes twice; ``items`` are trained on. At most 48 actions are all 20,910 commands, which the simple
    split divides into 16,728 and 4,182.

    Raises:
        DataError: an argument is out of bounds, there are not so many commands, or a split would be empty.

    Source: Lake and Baroni 2018 (arXiv:1711.00350); so many items as in Xu 2026 (arXiv:2602.16967).
    """
    require_between("most_actions", most_actions, 1, 48)
    known = [each for each in scan_commands() if len(each[1]) <= most_actions]
    require_room(items, held_out, len(known), f"commands of at most {most_actions} actions")
    generator = torch.Generator().manual_seed(split_seed)
    chosen = [known[place] for place in torch.randperm(len(known), generator=generator)[: items + held_out]]
    command_nl = _pad([[WORDS.index(word) + 1 for word in words] for words, _ in chosen], 9, PAD)
    codes = [[ACTIONS.index(action) + 3 for action in actions] for _, actions in chosen]
    written_nl = _pad([[START, *each] for each in codes], most_actions + 1, PAD)
    follows_nl = _pad([[*each, END] for each in codes], most_actions + 1, IGNORED)
    inputs = {"command": command_nl, "written": written_nl}
    return {
        **divide_held_out(inputs, follows_nl, items, validation_share),
        "classes": len(ACTIONS) + 3,
    }


def _pad(rows: Sequence[Sequence[int]], length: int, filling: int) -> Tensor:
    return torch.tensor([[*row, *[filling] * (length - len(row))] for row in rows])


def whole_sequences(output: Any, labels_nl: Tensor) -> dict[str, Any]:
    """Return the mean loss of the places that count, and the share of items with all such places right.

    For ``task.loss``: the quality that was published of SCAN. Every place is asked with what is right
    written before it.
    """
    scores_nlc = logits_of(output).float()
    total = functional.cross_entropy(scores_nlc.flatten(0, 1), labels_nl.flatten(), ignore_index=IGNORED)
    right_nl = (scores_nlc.argmax(-1) == labels_nl) | (labels_nl == IGNORED)
    return {"loss": total, "quality": right_nl.all(1).double().mean()}
