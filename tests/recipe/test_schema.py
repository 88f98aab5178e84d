"""Rules between fields: losses, rules that stop, and targets."""

from __future__ import annotations

import pytest

from tests.recipe.test_read import LEAST, faults
from tpsprune import recipe
from tpsprune.errors import PruneError
from tpsprune.recipe.prune import Latency, Macs, Params, Target, Tolerance, Widths
from tpsprune.recipe.schema import signal_names
from tpsprune.recipe.stop import ConsensusRule, MaskRule, ReopenRule
from tpsprune.recipe.task import TabularData, TextData, labels_wanted

CUSTOM = 'task.data={kind="custom", factory="a:b"}'
TEXT = 'task.data={kind="text", source="python-topics"}'
WINE = 'task.data={kind="tabular", source="wine"}'
DIABETES = 'task.data={kind="tabular", source="diabetes"}'
FILE = 'task.data={kind="tabular", path="a.csv", target="y"}'
OWN, NEXT, SMOOTH = "task.loss=theirs:loss", "task.loss=next-token", "train.label_smoothing=0.1"
SMOOTHING = "train.label_smoothing: has no meaning"


@pytest.mark.parametrize(
    "overrides",
    [
        ("task.loss=cross-entropy",),
        (OWN,),
        (CUSTOM, "task.loss=mse"),
        (CUSTOM, "task.loss=bce"),
        (CUSTOM, NEXT, SMOOTH),
        (TEXT, NEXT),
        (TEXT, OWN),
        (TEXT, NEXT, "retrain.teacher=dense"),
        (DIABETES, "task.loss=mse", "retrain.teacher=dense", "retrain.teacher_share=1.0"),
        (CUSTOM, "task.loss=bce", "retrain.teacher=dense"),
        (OWN, "retrain.adapter=singlora", "retrain.adapter_rank=2"),
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
            "task.loss: unknown loss 'mae' (did you mean 'mse'?); expected a known one or a function",
        ),
        (
            ("task.loss=zzz",),
            "task.loss: unknown loss 'zzz' (known: cross-entropy, bce, next-token, mse, reconstruction);",
        ),
        (
            ("task.loss=mse",),
            "task.loss: data of kind 'digits' have a class for a label; expected 'cross-entropy' or",
        ),
        ((TEXT,), "task.loss: data of kind 'text' have the next byte for a label at every place; expected"),
        (
            (WINE, "task.loss=mse"),
            "task.loss: the target holds classes; expected 'cross-entropy' or a function",
        ),
        ((DIABETES,), "task.loss: the target holds numbers; expected 'mse' or a function of your own"),
        (
            (WINE, "task.loss=bce"),
            "task.loss: data of kind 'tabular' have one label a row; expected 'cross-entropy', 'mse' or a",
        ),
        ((WINE, "task.data.labels=numbers"), "task.data.labels: the target of 'wine' holds classes (found"),
        (
            (FILE, "task.data.labels=numbers"),
            "task.loss: the target holds numbers; expected 'mse' or a function",
        ),
        ((FILE, OWN), "task.data.labels: with a custom loss set what the target is: 'classes' or 'numbers'"),
        (('task.data={kind="tabular"}',), "task.data: give path or source, one of the two"),
        ((f'{TEXT[:-1]}, path="a.txt"}}', NEXT), "task.data: give path or source, one of the two"),
        (('task.data={kind="tabular", path="a.csv"}',), "task.data.target: required with path, but missing:"),
        ((f'{WINE[:-1]}, target="y"}}',), "task.data.target: is read with path only (here source = 'wine')"),
        ((f'{WINE[:-1]}, leave_out=["y"]}}',), "task.data.leave_out: is read with path only (here source ="),
        ((CUSTOM, "task.loss=mse", SMOOTH), f"{SMOOTHING} with loss 'mse'; expected 0 (found 0.1)"),
        ((OWN, "train.temperature=3.0"), "train.temperature: has no meaning with loss 'theirs:loss'"),
        (
            (OWN, "retrain.teacher=dense"),
            "retrain.teacher: what a ticket learns from the dense model's outputs is unknown with loss '",
        ),
        ((OWN, SMOOTH), f"{SMOOTHING} with loss 'theirs:loss'; expected 0 (found 0.1)"),
        (('task.data={kind="tabular", source="iris"}',), "task.data.source: must be 'breast-cancer', 'wine'"),
        (('task.data={kind="text", length=0}',), "task.data.length: must be greater than or equal to 1"),
    ],
)
def test_a_loss_that_does_not_go_with_its_data_is_one_fault_with_what_would_do(
    overrides: tuple[str, ...], words: str
) -> None:
    found = faults(LEAST, *overrides)
    assert len(found) == 1, found
    assert found[0].startswith(words), found


def test_a_target_is_read_as_the_loss_wants_it_or_as_labels_has_it() -> None:
    assert labels_wanted(TabularData(path="a"), "cross-entropy") == "classes"
    assert labels_wanted(TabularData(path="a"), "mse") == "numbers"
    assert labels_wanted(TabularData(path="a", labels="numbers"), "theirs:loss") == "numbers"


def test_a_text_has_windows_of_sixty_four_bytes() -> None:
    read = recipe.parse(LEAST, "r.toml", (TEXT, NEXT))
    assert isinstance(read.task.data, TextData)
    assert read.task.data.length == 64


TOGETHER = f"""{LEAST}
[watch]
signals = ["d_eff", "mask_distance", "spectral_edge", "condensation"]

[stop.draw]
rule = "consensus"
at_least = 1

[[stop.draw.rules]]
rule = "mask"
threshold = 0.2

[[stop.draw.rules]]
rule = "reopen"
"""


def test_a_consensus_is_read_and_written() -> None:
    read = recipe.parse(TOGETHER, "r.toml")
    assert read.stop.draw == ConsensusRule(rules=(MaskRule(threshold=0.2), ReopenRule()), at_least=1)
    assert recipe.parse(recipe.dumps(read), "again") == read


def test_every_signal_may_be_watched_and_ruled_on() -> None:
    names = signal_names(recipe.parse(TOGETHER, "r.toml"))
    assert {"mask_distance", "condensation", "spectral_edge_k"} <= set(names)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("at_least = 1", "at_least = 3", "stop.draw.at_least: needs 3 of 2 rules"),
        ('"mask_distance", ', "", "stop.draw.rules.0.monitor: 'mask_distance' is not read in this recipe"),
        ('reopen"', 'epoch"\nepoch = 9', "stop.draw.rules.1.epoch: is after train.epochs = 4 (found 9)"),
        ("reopen", "repoen", "stop.draw.rules.1: unknown 'rule' 'repoen' (did you mean 'reopen'?); one of"),
        ("threshold =", "treshold =", "stop.draw.rules.0.treshold: unknown key (did you mean 'threshold'?)"),
    ],
)
def test_a_fault_of_a_rule_among_several_is_reported_with_its_place(old: str, new: str, words: str) -> None:
    (found,) = faults(TOGETHER.replace(old, new))
    assert found.startswith(words)


def test_one_rule_is_no_consensus() -> None:
    alone = TOGETHER.replace('[[stop.draw.rules]]\nrule = "reopen"\n', "")
    assert faults(alone) == ["stop.draw.rules: needs at least 2"]


KINDS = "name exactly one of macs, params, bytes, latency, joules, tolerance, widths"


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
        ("macs = 0.5\nparams = 0.5", f": {KINDS} (found {{'macs': 0.5, 'params': 0.5}})"),
        ("", f": {KINDS} (found {{}})"),
        ("mac = 0.5", f": {KINDS} (did you mean 'macs'?) (found {{'mac': 0.5}})"),
        ("macs = 0.5\nbatch_items = 3", ".batch_items: unknown key (known here: macs)"),
        ("latency = 0.5\nbatch_item = 2", ".batch_item: unknown key (did you mean 'batch_items'?)"),
        ("latency = 0.5\nbatch_items = 0", ".batch_items: must be greater than or equal to 1 (found 0)"),
        ("params = 1.5", ".params: must be less than 1 (found 1.5)"),
        ("tolerance = 0", ".tolerance: must be greater than 0 (found 0)"),
        ("latency = '2 ms'", ".latency: must be a valid number (found '2 ms')"),
        ("widths = 3", ".widths: must be a table (found 3)"),
        ("widths = {a = 0}", ".widths.a: must be greater than or equal to 1 (found 0)"),
        ("widths = {a = 3.5}", ".widths.a: must be a valid integer (found 3.5)"),
    ],
)
def test_what_is_wrong_with_a_target_is_reported_once_at_its_place(text: str, words: str) -> None:
    assert faults(with_target(text)) == [f"prune.target{words}"]


def test_a_target_that_is_no_table_is_reported_with_what_would_do() -> None:
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
    words = "prune.rounds: need a target of macs, params, bytes, latency or joules, to go there in steps"
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


def test_with_an_adapter_no_end_of_training_hangs_on_tps_which_ends_with_the_draw() -> None:
    tps = 'tps={variant="neurons"}'
    draw, end = (
        f'stop.{each}={{rule="plateau", monitor="tps_energy", tolerance=0.1, patience=2}}'
        for each in ("draw", "end")
    )
    assert recipe.parse(LEAST, "r.toml", (tps, draw, end)).stop.end.rule == "plateau"
    assert recipe.parse(LEAST, "r.toml", (tps, draw, "retrain.adapter=lora")).stop.draw.rule == "plateau"
    (found,) = faults(LEAST, tps, end, "retrain.adapter=lora")
    assert found.startswith("stop.end.monitor: 'tps_energy' is not read in this recipe")
