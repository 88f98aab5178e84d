"""Watch in a user's loop: readings as the panel makes them, verdicts as the rules make them."""

from __future__ import annotations

import copy
import io
import json
from typing import Any

import psutil
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import tpsprune
from tests.loop.conftest import Data, small_data, small_net
from tpsprune import pruning
from tpsprune.errors import DataError, LoopError, RecipeError, TpspruneError
from tpsprune.recipe.train import Watch as Settings
from tpsprune.records import Decision
from tpsprune.signals import Panel, View

CALM = tpsprune.Plateau(monitor="norm", tolerance=1.0, patience=2, min_adjusted_accuracy=0.0)
QUICK: dict[str, Any] = {"h1_points": 12, "edge_window": 4, "every_steps": 2}


def stepped(net: nn.Module, data: Data, rate: float = 0.05) -> None:
    cross_entropy(net(data[0]), data[1]).backward()
    with torch.no_grad():
        for weight in net.parameters():
            assert weight.grad is not None
            weight.sub_(rate * weight.grad)
            weight.grad = None


def watched(net: nn.Module, data: Data, watch: tpsprune.Watch, steps: range) -> list[Decision]:
    decisions: list[Decision] = []
    for step in steps:
        stepped(net, data)
        decisions += watch.step(step)
    return decisions


def test_readings_are_those_of_the_panel_on_the_groups_of_the_model(data: Data) -> None:
    net = small_net()
    with tpsprune.Watch(net, data[0], signals=("norm", "d_eff"), every_steps=2) as watch:
        watched(net, data, watch, range(1, 4))
    other = small_net()
    stepped(other, data)
    stepped(other, data)
    sites = pruning.tensors_by_group(other, pruning.find_groups(other, data[0][:2]))
    view = View(other, (data[0],), 2, 0.0, sites.consumers, sites.written, sites.scaled)
    with Panel.of(Settings(signals=("norm", "d_eff")), 0) as panel:
        _, expected = panel.read(panel.start(), view)
    assert tuple(watch.readings) == expected
    assert watch["norm"] == next(r.value for r in expected if r.signal == "norm" and not r.group)


def test_a_rule_acts_at_the_reading_at_which_it_should_with_its_reason(data: Data) -> None:
    net = small_net()
    with tpsprune.Watch(net, data[0], signals=["norm"], every_steps=5, draw=CALM) as watch:
        verdicts = {step: watch.step(step) for step in range(1, 11)}
    assert [step for step, decisions in verdicts.items() if decisions] == [5, 10]
    first, second = verdicts[5][0], verdicts[10][0]
    assert (first.kind, first.act, second.act, second.step) == ("draw", False, True, 10)
    assert second.rule == "plateau of norm within 1 over 2"
    assert "calm (spread 0.000 ≤ 1)" in second.reason


def test_both_rules_decide(data: Data) -> None:
    end = tpsprune.Threshold(monitor="validation_accuracy", threshold=0.9)
    with tpsprune.Watch(small_net(), data[0], signals=["norm"], every_steps=1, draw=CALM, end=end) as watch:
        verdicts = watch.step(1, validation_accuracy=0.95)
    assert [(each.kind, each.act) for each in verdicts] == [("draw", False), ("stop", True)]


def test_a_rule_in_the_fields_of_a_recipe_is_the_same_rule(data: Data) -> None:
    words = {
        "rule": "plateau",
        "monitor": "norm",
        "tolerance": 1.0,
        "patience": 2,
        "min_adjusted_accuracy": 0.0,
    }
    verdicts = []
    for rule in (CALM, words):
        with tpsprune.Watch(small_net(), data[0], signals=["norm"], every_steps=1, draw=rule) as watch:
            verdicts.append([watch.step(step) for step in (1, 2)])
    assert verdicts[0] == verdicts[1]
    assert verdicts[0][1][0].act


def test_what_is_dear_is_called_for_a_reading_only(data: Data) -> None:
    calls = []

    def accuracy() -> float:
        calls.append(1)
        return 0.5

    with tpsprune.Watch(small_net(), data[0], signals=[], every_steps=10) as watch:
        for step in range(1, 31):
            watch.step(step, epoch=step / 10, validation_accuracy=accuracy)
    assert len(calls) == 3
    assert [(r.signal, r.value, r.epoch) for r in watch.readings] == [
        ("validation_accuracy", 0.5, epoch) for epoch in (1.0, 2.0, 3.0)
    ]


def test_the_order_parameters_of_tps_can_be_ruled_on(data: Data) -> None:
    net = small_net()
    tps = tpsprune.TPS(net, torch.optim.SGD(net.parameters(), lr=0.1), variant="moments", data=data)
    end = tpsprune.Threshold(monitor="tps_coherence", mode="min", threshold=2.0)
    with tpsprune.Watch(net, data[0], signals=[], every_steps=1, end=end) as watch:
        (verdict,) = watch.step(1, readings=tps.order_parameters())
    assert verdict.act
    assert watch["tps_coherence"] == tps.order_parameters()[-1].value


def test_nothing_is_learned_where_accuracy_is_that_of_guessing(data: Data) -> None:
    rule = tpsprune.Threshold(monitor="norm", threshold=0.0, min_adjusted_accuracy=0.5)
    acts = []
    for accuracy in (1 / 3, 0.6, 0.7):
        with tpsprune.Watch(small_net(), data[0], signals=["norm"], every_steps=1, draw=rule) as watch:
            acts.append(watch.step(1, validation_accuracy=accuracy)[0].act)
    assert acts == [False, False, True], "half of the way from one third to one is two thirds"


@pytest.mark.parametrize("wrap", ["compiled", "replicated"])
def test_a_wrapped_model_reads_as_the_one_in_it(wrap: str, data: Data) -> None:
    found = []
    for wrapped in (False, True):
        net: Any = small_net()
        if wrapped:
            net = torch.compile(net, backend="eager") if wrap == "compiled" else nn.DataParallel(net)
        with tpsprune.Watch(net, data[0], signals=["norm", "d_eff"], every_steps=1) as watch:
            watch.step(1)
        found.append(watch.readings)
    assert found[0] == found[1]


def test_batches_of_a_loader_bring_their_labels(data: Data) -> None:
    loader = DataLoader(TensorDataset(*data), batch_size=16)
    with tpsprune.Watch(small_net(), loader, signals=["commutator_defect"], every_steps=1) as watch:
        watch.step(1)
    assert watch["commutator_defect"] is not None


def test_the_model_is_left_as_it_was(data: Data) -> None:
    net = small_net().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with tpsprune.Watch(
        net, data[0], every_steps=1, **{k: v for k, v in QUICK.items() if k != "every_steps"}
    ) as watch:
        watch.step(1)
        watch.step(2)
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_watch_that_goes_on_from_a_checkpoint_reads_on_as_if_nothing_had_happened(data: Data) -> None:
    def run(steps_before: int) -> tuple[list[Any], list[Decision]]:
        net = small_net()
        with tpsprune.Watch(net, data[0], draw=CALM, **QUICK) as first:
            decisions = watched(net, data, first, range(1, steps_before + 1))
            file = io.BytesIO()
            state = first.state_dict()
            assert json.loads(json.dumps(state["plain"])) == state["plain"]
            torch.save(state, file)
        file.seek(0)
        with tpsprune.Watch(net, data[0], draw=CALM, **QUICK) as second:
            second.load_state_dict(torch.load(file, weights_only=True))
            decisions += watched(net, data, second, range(steps_before + 1, 25))
        return second.readings, decisions

    straight = run(0)
    assert {"h1", "spectral_edge", "norm", "d_eff"} <= {reading.signal for reading in straight[0]}
    for steps_before in (5, 12):
        assert run(steps_before) == straight


def test_a_state_of_another_watch_is_refused(data: Data) -> None:
    def made(**settings: Any) -> tpsprune.Watch:
        return tpsprune.Watch(small_net(), data[0], signals=["norm"], **settings)

    state = made(every_steps=2).state_dict()
    with pytest.raises(LoopError, match=r"every_steps is 2 in the state and 3 here"):
        made(every_steps=3).load_state_dict(state)
    with pytest.raises(
        LoopError, match=r"draw is None in the state and 'plateau of norm within 1 over 2' here"
    ):
        made(every_steps=2, draw=CALM).load_state_dict(state)
    with pytest.raises(LoopError, match=r"the state is None, and 'tpsprune\.watch/1' is needed"):
        made().load_state_dict({})
    with pytest.raises(
        LoopError, match=r"draw is 'plateau of norm within 1 over 2' in the state and None here"
    ):
        made().load_state_dict(made(draw=CALM).state_dict())


def test_a_state_that_lacks_something_is_refused_with_its_name(data: Data) -> None:
    watch = tpsprune.Watch(small_net(), data[0], signals=["norm"], every_steps=1, draw=CALM)
    watch.step(1)
    state, before = watch.state_dict(), list(watch.readings)

    def without(name: str, *path: str) -> dict[str, Any]:
        cut_short = copy.deepcopy(state)
        within = cut_short
        for key in path:
            within = within[key]
        del within[name]
        return cut_short

    for name, path in (
        *((name, ()) for name in ("tensors", "plain")),
        *((name, ("plain",)) for name in ("settings", "last_step", "signals", "rules", "readings")),
        ("norm", ("plain", "signals")),
        ("draw", ("plain", "rules")),
    ):
        with pytest.raises(
            LoopError, match=rf"Watch: the state lacks '{name}'; use all that state_dict returned"
        ):
            watch.load_state_dict(without(name, *path))
    assert watch.readings == before


def test_leaving_the_block_ends_the_process_that_counts_loops_also_when_it_raises(data: Data) -> None:
    children = psutil.Process().children
    before = {each.pid for each in children()}
    for error in (None, KeyError):
        try:
            with tpsprune.Watch(small_net(), data[0], signals=["h1"], every_steps=1, h1_points=129) as watch:
                watch.step(1)
                assert len({each.pid for each in children()} - before) == 1
                if error is not None:
                    raise error
        except KeyError:
            assert error is KeyError
        assert {each.pid for each in children()} <= before
        assert ("h1" in {reading.signal for reading in watch.readings}) is (error is None)


def test_what_is_used_as_it_cannot_be_is_reported(data: Data) -> None:
    watch = tpsprune.Watch(small_net(), data[0], signals=["norm"], every_steps=2)
    watch.step(4)
    with pytest.raises(LoopError, match=r"step 2 comes after step 4: steps count on over all epochs"):
        watch.step(2)
    watch.step(7)
    with pytest.raises(LoopError, match=r"step 0 comes after step 7"):
        watch.step(0)
    with pytest.raises(LoopError, match=r"nothing has been read under 'nrom' \(did you mean 'norm'\?\)"):
        watch["nrom"]
    with pytest.raises(LoopError, match=r"under 'accuracy' \(read so far: norm\)"):
        watch["accuracy"]
    watch.close()
    watch.close()
    with pytest.raises(LoopError, match=r"this watch is closed"):
        watch.step(6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"signals": ["d_ef"]}, r"Watch: signals\.0: must be .*did you mean 'd_eff'\?"),
        ({"signals": ["norm", "norm"]}, r"Watch: signals: names 'norm' more than once"),
        ({"every_steps": 0}, r"every_steps: must be greater than or equal to 1 \(found 0\)"),
        ({"every_epochs": 1}, r"Watch: every_epochs: is for recipes; here use every_steps"),
        ({"h1_point": 3}, r"h1_point: unknown key \(did you mean 'h1_points'\?\)"),
        ({"draw": 0.5}, r"Watch: draw: is 0\.5; expected tpsprune\.Plateau\(\), another rule, or the fields"),
        ({"draw": {"rule": "platau"}}, r"draw: unknown 'rule' 'platau' \(did you mean 'plateau'\?\)"),
        (
            {"end": {"rule": "plateau", "tolerence": 1}},
            r"end\.tolerence: unknown key \(did you mean 'tolerance'",
        ),
        (
            {"end": tpsprune.Plateau(patience=1)},
            r"end\.patience: must be greater than or equal to 2 \(found 1\)",
        ),
        ({"draw": CALM, "chance_accuracy": 1.0}, r"chance_accuracy: must be a share from 0 to below 1"),
    ],
)
def test_a_setting_that_cannot_be_is_reported_with_what_would_do(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        tpsprune.Watch(small_net(), small_data()[0], **settings)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (
            tpsprune.Plateau(monitor="nrom", min_adjusted_accuracy=0.0),
            r"draw\.monitor: 'nrom' is not read here \(did you",
        ),
        (
            tpsprune.Plateau(monitor="bleu", min_adjusted_accuracy=0.0),
            r"'bleu' is not read here \(read here: norm\)",
        ),
        (
            tpsprune.Plateau(monitor="norm"),
            r"draw\.min_adjusted_accuracy: waits for validation accuracy: pass it",
        ),
        (tpsprune.AtEpoch(epoch=3.0), r"draw: counts epochs: pass them"),
        (
            tpsprune.Consensus(rules=(CALM, tpsprune.AtEpoch(epoch=3.0)), at_least=3),
            r"(?s)draw\.at_least: needs 3 of 2 rules.*draw\.rules\.1: counts epochs",
        ),
    ],
)
def test_a_rule_that_could_never_act_is_reported_at_the_first_reading(
    rule: Any, words: str, data: Data
) -> None:
    with tpsprune.Watch(small_net(), data[0], signals=["norm"], every_steps=1, draw=rule) as watch:
        with pytest.raises(RecipeError, match=words):
            watch.step(1)
        assert watch.readings == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (7, r"calibration_data is int: a tensor, or a list or loader of batches is needed"),
        ([], r"calibration_data is empty"),
        (torch.zeros(4, 5), r"the model does not take calibration_data: mat1"),
        (torch.zeros(0, 8), r"batch 1 of 1 of calibration_data has no items; expected some 256 training"),
        ([torch.zeros(4, 8), (torch.zeros(0, 8),)], r"batch 2 of 2 of calibration_data has no items"),
        ([[torch.zeros(0, 8), torch.zeros(0)]], r"batch 1 of 1 of calibration_data has no items"),
    ],
)
def test_data_that_are_no_batches_are_refused(data: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        tpsprune.Watch(small_net(), data)


@pytest.mark.parametrize(
    ("data", "labels", "words"),
    [
        (
            torch.zeros(4, 8),
            torch.zeros(5),
            r"labels have shape \(5,\), and calibration_data has 4 items; use one label",
        ),
        (torch.zeros(4, 8), torch.tensor(3), r"labels have shape \(\), and calibration_data has 4 items"),
        (
            [torch.zeros(4, 8)],
            torch.zeros(4),
            r"labels are one tensor, and calibration_data is batches; expected a list of",
        ),
        (
            torch.zeros(300, 8),
            [torch.zeros(300)],
            r"labels are 1 tensors, and calibration_data is 2 batches; expected one",
        ),
        ([torch.zeros(4, 8)], [], r"labels are 0 tensors, and calibration_data is 1 batches"),
        (
            [torch.zeros(4, 8)] * 3,
            [torch.zeros(4), torch.zeros(5), [0, 1, 2, 0]],
            r"labels: those of batch 2 have shape \(5,\) for 4 items; those of batch 3 are list; use a",
        ),
    ],
)
def test_labels_that_do_not_fit_the_data_are_refused(data: Any, labels: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        tpsprune.Watch(small_net(), data, labels, signals=["commutator_defect"])


def test_one_tensor_of_labels_is_split_as_the_data_are() -> None:
    x, y = small_data(items=601)
    found = []
    batches = list(x.tensor_split(3)), list(y.tensor_split(3))
    for data, labels in ((x, y), (x, batches[1]), batches):
        with tpsprune.Watch(small_net(), data, labels, signals=["commutator_defect"], every_steps=1) as watch:
            watch.step(1)
        assert watch["commutator_defect"] is not None
        found.append(watch.readings)
    assert found[0] == found[1] == found[2]


def test_a_value_under_the_name_of_a_signal_is_refused(data: Data) -> None:
    watch = tpsprune.Watch(small_net(), data[0], signals=["norm"], every_steps=1)
    with pytest.raises(TpspruneError, match=r"norm: is read by a signal already"):
        watch.step(1, norm=3.0)


def test_a_panel_handed_in_goes_on_when_the_watch_is_closed(data: Data) -> None:
    settings = Settings(signals=("norm", "h1"), h1_points=12)
    with Panel.of(settings, 0) as panel:
        with tpsprune.Watch(small_net(), data[0], signals=panel, every_steps=1) as dense:
            dense.step(1)
        ticket = tpsprune.Watch(small_net(seed=1), data[0], signals=panel, every_steps=1, end=CALM)
        ticket.signal_memories = dense.signal_memories
        assert [each.kind for each in ticket.step(2)] == ["stop"]
        ticket.close()
        assert {each.step for each in ticket.readings if each.signal == "h1"} == {2}
