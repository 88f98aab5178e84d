"""A look comes back from its facts and tensors: sizes drawn of it are those drawn at once, and nested."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.pruning.nets_attention import net as attention
from tests.pruning.nets_attention import sequences
from tests.pruning.test_sizes import BATCHES, SETTINGS, net
from tpsprune.errors import ArtifactError
from tpsprune.pruning import WidthPlan, draw, plan_sizes
from tpsprune.pruning.costs import bytes_of
from tpsprune.pruning.look import pack_look, restore_look
from tpsprune.recipe.prune import Bytes, Macs, Params, Prune, Tolerance
from tpsprune.records import FamilyLook, dump, load

CHOICES = [
    SETTINGS,
    replace(SETTINGS, widths="uniform"),
    replace(SETTINGS, widths="effective-rank"),
    replace(SETTINGS, units="magnitude"),
    replace(SETTINGS, units="random", widths="global-magnitude", compensate=False),
    replace(SETTINGS, units="pivoted-cholesky", widths="equal-residual"),
]


def restored(model: nn.Module, settings: Prune, plan: WidthPlan) -> WidthPlan:
    facts, tensors = pack_look(plan)
    facts = load(FamilyLook, json.loads(json.dumps(dump(facts))))
    return restore_look(model, BATCHES[0], settings, facts, tensors)


@pytest.mark.parametrize("settings", CHOICES, ids=lambda each: f"{each.units}, {each.widths}")
def test_a_size_of_a_look_from_disk_is_the_size_drawn_at_once(settings: Prune) -> None:
    model = net()
    (whole, first) = plan_sizes(model, BATCHES, settings, [Macs(0.5), Macs(0.3)])
    look = restored(model, replace(settings, target=Macs(0.5)), first)
    (again,) = plan_sizes(model, [], settings, [Macs(0.5)], look=look)
    assert again.widths == whole.widths
    own = replace(settings, target=Macs(0.5))
    ours, theirs = (draw(model, BATCHES, own, plan) for plan in (again, whole))
    assert (ours.plan, ours.notes, ours.changes) == (theirs.plan, theirs.notes, theirs.changes)
    for name, value in theirs.ticket.state_dict().items():
        assert torch.equal(value, ours.ticket.state_dict()[name]), name


def test_head_widths_come_back() -> None:
    model, batches = attention("separate").eval(), list(sequences(64).split(32))
    settings = Prune(quality="fast", round_to=1, head_width=True)
    (plan,) = plan_sizes(model, batches, settings, [Macs(0.6)])
    assert any(group.scores is not None for group in plan.groups)
    facts, tensors = pack_look(plan)
    own = replace(settings, target=Macs(0.6))
    look = restore_look(model, batches[0], own, facts, tensors)
    (again,) = plan_sizes(model, [], settings, [Macs(0.6)], look=look)
    ours, theirs = (draw(model, batches, own, each).ticket.state_dict() for each in (again, plan))
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())


@pytest.mark.parametrize("share", [0.8, 0.6])
def test_a_share_of_bytes_is_met_where_attention_is_opened_to_be_pruned(share: float) -> None:
    model = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0).eval()
    batches = list(torch.randn(64, 6, 32).split(32))
    own = Prune(quality="fast", target=Bytes(share))
    (plan,) = plan_sizes(model, batches, own, [Bytes(share)])
    ticket = draw(model, batches, own, plan).ticket
    assert bytes_of(ticket.state_dict()) <= share * bytes_of(model.state_dict())


@hypothesis_settings(max_examples=25, deadline=None)
@given(
    first=st.lists(st.floats(0.2, 0.95), min_size=1, max_size=3, unique=True),
    more=st.floats(0.2, 0.95),
    round_to=st.sampled_from([1, 4]),
)
def test_a_further_size_lies_between_those_that_there_are(
    first: list[float], more: float, round_to: int
) -> None:
    model, settings = net(), replace(SETTINGS, round_to=round_to)
    plans = plan_sizes(model, BATCHES, settings, [Macs(share) for share in first])
    sizes = zip(sorted(first, reverse=True), plans, strict=True)
    known = {Macs(share): plan.width_of for share, plan in sizes}
    known.pop(Macs(more), None)
    (added,) = plan_sizes(model, BATCHES, settings, [Macs(more)], look=plans[0], known=known)
    assert added.cost_share <= more * (1 + 1e-9)
    all_sizes = [*known.items(), (Macs(more), added.width_of)]
    ordered = [tuple(widths.values()) for _, widths in sorted(all_sizes, key=lambda each: -each[0].macs)]
    for larger, smaller in pairwise(ordered):
        assert all(big >= small for big, small in zip(larger, smaller, strict=True))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda held: {**held, "units/0": held["units/0"][:-1]}, "each of its units once"),
        (lambda held: {**held, "units/0": held["units/0"] * 0}, "each of its units once"),
        (lambda held: {**held, "shares/0": held["shares/0"][:3]}, "a share for each"),
        (lambda held: {k: v for k, v in held.items() if k != "residuals/3"}, "does not have its residuals"),
        (lambda held: {k: v for k, v in held.items() if "residuals" not in k}, "has no residuals, which"),
    ],
)
def test_a_look_that_does_not_fit_is_refused(
    harm: Callable[[dict[str, Tensor]], dict[str, Tensor]], words: str
) -> None:
    model = net()
    (plan,) = plan_sizes(model, BATCHES, SETTINGS, [Macs(0.5)])
    facts, tensors = pack_look(plan)
    with pytest.raises(ArtifactError, match=words):
        restore_look(model, BATCHES[0], SETTINGS, facts, harm(tensors))
    other = nn.Sequential(nn.Flatten(), nn.Linear(100, 7), nn.ReLU(), nn.Linear(7, 3))
    with pytest.raises(ArtifactError, match="of other groups"):
        restore_look(other, BATCHES[0], SETTINGS, facts, tensors)


def test_a_look_by_uniform_widths_does_not_serve_a_tolerance() -> None:
    model, settings = net(), replace(SETTINGS, widths="uniform")
    (plan,) = plan_sizes(model, BATCHES, settings, [Params(0.5)])
    with pytest.raises(ArtifactError, match=r"no residuals, which the target tolerance=0\.1"):
        restore_look(model, BATCHES[0], replace(settings, target=Tolerance(0.1)), *pack_look(plan))
