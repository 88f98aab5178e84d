"""A target is of exactly one kind, and what is wrong with it is said at its own place."""

from __future__ import annotations

import pytest

from tests.recipe.test_read import LEAST, faults
from tpsprune import recipe
from tpsprune.errors import PruneError
from tpsprune.recipe.prune import Latency, Macs, Params, Target, Tolerance, Widths

KINDS = "name exactly one of macs, params, latency, tolerance, widths"


def with_target(text: str) -> str:
    return f"{LEAST}[prune.target]\n{text}\n"


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("macs = 0.4", Macs(0.4)),
        ("params = 0.4", Params(0.4)),
        ("latency = 0.4", Latency(0.4)),
        ("latency = 0.4\nbatch_items = 64", Latency(0.4, 64)),
        ("tolerance = 0.01", Tolerance(0.01)),
        ('widths = {"body.0" = 3, widths = 4}', Widths({"body.0": 3, "widths": 4})),
    ],
)
def test_every_kind_is_read_and_written_and_read_again(text: str, target: Target) -> None:
    read = recipe.parse(with_target(text), "r.toml")
    assert read.prune.target == target
    assert recipe.parse(recipe.dumps(read), "again") == read


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("macs = 0.5\nparams = 0.5", f"prune.target: {KINDS} (found {{'macs': 0.5, 'params': 0.5}})"),
        ("", f"prune.target: {KINDS} (found {{}})"),
        ("mac = 0.5", f"prune.target: {KINDS} (did you mean 'macs'?) (found {{'mac': 0.5}})"),
        ("macs = 0.5\nbatch_items = 3", "prune.target.batch_items: unknown key (known here: macs)"),
        (
            "latency = 0.5\nbatch_item = 2",
            "prune.target.batch_item: unknown key (did you mean 'batch_items'?)",
        ),
        (
            "latency = 0.5\nbatch_items = 0",
            "prune.target.batch_items: must be greater than or equal to 1 (found 0)",
        ),
        ("params = 1.5", "prune.target.params: must be less than 1 (found 1.5)"),
        ("tolerance = 0", "prune.target.tolerance: must be greater than 0 (found 0)"),
        ("latency = '2 ms'", "prune.target.latency: must be a valid number (found '2 ms')"),
        ("widths = 3", "prune.target.widths: must be a table (found 3)"),
        ("widths = {a = 0}", "prune.target.widths.a: must be greater than or equal to 1 (found 0)"),
        ("widths = {a = 3.5}", "prune.target.widths.a: must be a valid integer (found 3.5)"),
    ],
)
def test_what_is_wrong_with_a_target_is_said_once_at_its_place(text: str, words: str) -> None:
    assert faults(with_target(text)) == [words]


def test_a_target_that_is_no_table_is_told_what_would_do() -> None:
    assert faults(LEAST, "prune.target=0.5") == [f"prune.target: {KINDS} (found 0.5)"]


def test_a_target_set_on_the_command_line_takes_the_place_of_the_one_in_the_file() -> None:
    text = with_target("latency = 0.5\nbatch_items = 8")
    assert recipe.parse(text, "r", ["prune.target.latency=0.4"]).prune.target == Latency(0.4, 8)
    widths = recipe.parse(with_target("macs = 0.5"), "r", ["prune.target.widths.hidden=3"]).prune.target
    assert widths == Widths({"hidden": 3})
    assert recipe.parse(with_target("macs = 0.5"), "r", ["prune.target.params=0.5"]).prune.target == Params(
        0.5
    )


def test_rounds_need_a_target_that_can_be_neared_in_steps() -> None:
    words = "prune.rounds: need a target of macs, params or latency, to go there in steps"
    for text, found in (("tolerance = 0.1", "tolerance=0.1"), ("widths = {a = 3}", "widths of 1 group")):
        assert faults(with_target(text), "prune.rounds=2") == [f"{words} (found {found})"]
    assert recipe.parse(with_target("latency = 0.5"), "r", ["prune.rounds=2"]).prune.rounds == 2


@pytest.mark.parametrize("share", [0, 1, -0.5, 1.5, float("nan"), "half"])
def test_a_share_that_is_none_is_refused_in_python_too(share: float) -> None:
    for kind in (Macs, Params, Latency, Tolerance):
        with pytest.raises(
            PruneError, match=f"target {kind.__name__.lower()} = .*: a share above 0 and below 1"
        ):
            kind(share)
