"""Extraction from networks of every kind and of drawn ones: the ticket, its plan and its state dict agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.pruning.feeds import noise
from tests.pruning.nets_attention import ATTENTIONS, Net, Packed, net, sequences
from tests.pruning.nets_structure import Bottlenecks, DrawnNet, OwnRmsNorm, Plain, Stream, Unet, Vit, conv1d
from tpsprune.errors import PruneError
from tpsprune.numerics.forward import count_macs
from tpsprune.pruning import Extraction, Plan, extract
from tpsprune.pruning.repair import output_error
from tpsprune.pruning.replay import replay
from tpsprune.recipe.prune import Prune
from tpsprune.recipe.target import Macs, Widths

IMAGES, SERIES, SEQUENCES = noise(48, 2, 6, 6), noise(48, 4, 5), sequences(48)

PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
"""Shrinking a failure would take minutes."""


def packed() -> nn.Module:
    torch.manual_seed(0)
    return Net(Packed())


NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "layer norm": (lambda: Stream(nn.LayerNorm), SERIES),
    "rms norm": (lambda: Stream(nn.RMSNorm), SERIES),
    "rms norm of somebody's own": (lambda: Stream(OwnRmsNorm), SERIES),
    "Conv1D": (lambda: Stream(nn.LayerNorm, linear=conv1d), SERIES),
    "vision transformer": (Vit, IMAGES),
    "torch's own attention": (packed, SEQUENCES),
    "grouped, blocks": (lambda: Bottlenecks(4, 8, 12), IMAGES),
    "grouped, bundles": (lambda: Bottlenecks(2, 8, 12), IMAGES),
    "depthwise": (lambda: Plain(nn.Conv2d(8, 8, 3, padding=1, groups=8)), IMAGES),
    "group norm": (lambda: Plain(nn.GroupNorm(4, 8)), IMAGES),
    "skip and transposed convolution": (Unet, IMAGES),
    **{name: ((lambda name=name: net(name)), SEQUENCES) for name in ATTENTIONS},
}


def is_carried_by_its_plan(model: nn.Module, found: Extraction, batch: Tensor) -> None:
    """Assert that the ticket is the plan's network with the ticket's numbers, forward and backward."""
    plan = Plan.from_json(json.loads(json.dumps(found.plan.to_json())))
    shell = replay(model, plan)
    assert str(shell) == str(found.ticket)
    shapes = [
        {key: tensor.shape for key, tensor in each.state_dict().items()} for each in (shell, found.ticket)
    ]
    assert shapes[0] == shapes[1]
    shell.load_state_dict(found.ticket.state_dict())
    shell, ticket = shell.eval(), found.ticket.eval()
    said = ticket(batch)
    assert torch.equal(shell(batch), said)
    assert said.shape == model(batch).shape
    said.square().mean().backward()
    assert all(bool(each.grad.isfinite().all()) for each in ticket.parameters() if each.grad is not None)
    assert any(each.grad is not None for each in ticket.parameters())


def could_keep_more(model: nn.Module, plan: Plan, batch: Tensor, target: float) -> list[str]:
    """Return the groups of which the plan could keep one more unit, by counting on the wider network."""
    dense = count_macs(model, batch).total
    answer = []
    for rank, cut in enumerate(plan.groups):
        if cut.removed:
            wider = [*plan.groups]
            wider[rank] = replace(cut, kept=tuple(sorted((*cut.kept, cut.removed[0]))))
            share = count_macs(replay(model, replace(plan, groups=tuple(wider))), batch).total / dense
            if share <= target:
                answer.append(f"{cut.name}: {share:.4f}")
    return answer


@pytest.mark.parametrize("mend", ["refit", "nothing"])
@pytest.mark.parametrize("name", NETS)
def test_a_ticket_is_verified_meets_its_target_and_is_carried_by_its_plan(name: str, mend: str) -> None:
    make, batch = NETS[name]
    torch.manual_seed(0)
    model = make().eval()
    asked = Prune(target=Macs(0.6), fold=mend != "nothing", refit=mend == "refit")
    found = extract(model, batch.split(24), asked)
    assert found.macs_share <= 0.6
    assert not could_keep_more(model, found.plan, batch[:1], 0.6)
    is_carried_by_its_plan(model, found, batch)


@pytest.mark.parametrize("name", NETS)
def test_what_is_mended_is_nearer_to_the_model_than_what_is_not(name: str) -> None:
    """Of the same units, on the items that it was mended on."""
    make, batch = NETS[name]
    torch.manual_seed(0)
    model = make().eval()
    errors = {}
    for mend in ("refit", "fold", "nothing"):
        asked = Prune(
            target=Macs(0.7), units="pivoted-cholesky", fold=mend != "nothing", refit=mend == "refit",
            recalibrate=False,
        )  # fmt: skip
        errors[mend] = output_error(extract(model, [batch], asked).ticket, model, [batch])
    assert errors["fold"] < errors["nothing"]
    assert errors["refit"] < errors["nothing"]


@settings(max_examples=20, deadline=None, phases=PHASES)
@given(
    kinds=st.lists(st.sampled_from(["plain", "grouped", "depthwise", "residual"]), max_size=3),
    half_widths=st.lists(st.integers(2, 5), min_size=4, max_size=4),
    norm=st.sampled_from(["batch", "group", "one-group", "layer", "none"]),
    hidden=st.integers(2, 8),
    bias=st.booleans(),
    share=st.floats(0.3, 0.9),
    mend=st.sampled_from(["refit", "fold", "nothing"]),
    units=st.sampled_from(["interpolation", "pivoted-cholesky"]),
    training=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_so_it_is_on_networks_drawn_at_random(
    kinds: list[str],
    half_widths: list[int],
    norm: str,
    hidden: int,
    bias: bool,
    share: float,
    mend: str,
    units: str,
    training: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    model = DrawnNet(kinds, [2 * half for half in half_widths], norm, hidden).train(training)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not bias:
            module.register_parameter("bias", None)
    agrees(model, noise(24, 2, 6, 6, seed=seed), share, mend, units)


@settings(max_examples=15, deadline=None, phases=PHASES)
@given(
    norm=st.sampled_from([nn.LayerNorm, nn.RMSNorm, OwnRmsNorm, nn.Identity]),
    width=st.integers(3, 10),
    depth=st.integers(0, 3),
    turned=st.booleans(),
    share=st.floats(0.3, 0.9),
    mend=st.sampled_from(["refit", "fold", "nothing"]),
    units=st.sampled_from(["interpolation", "pivoted-cholesky"]),
    seed=st.integers(0, 1000),
)
def test_and_on_streams_of_vectors(
    norm: Callable[[int], nn.Module],
    width: int,
    depth: int,
    turned: bool,
    share: float,
    mend: str,
    units: str,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    model = Stream(norm, width, depth, conv1d if turned else nn.Linear)
    agrees(model, noise(24, 4, 5, seed=seed), share, mend, units)


def agrees(model: nn.Module, batch: Tensor, share: float, mend: str, units: str) -> None:
    """Assert that a target within reach is met, not needlessly undercut, and the ticket its plan's."""
    asked = Prune(
        target=Macs(share), units=units, fold=mend != "nothing", refit=mend == "refit",
        min_width=1, max_cut_share=0.99,
    )  # fmt: skip
    modes = [module.training for module in model.modules()]
    try:
        found = extract(model, batch.split(12), asked)
    except PruneError as error:
        assert "cannot be reached" in str(error)  # noqa: PT017
        assume(False)
    assert [module.training for module in found.ticket.modules()] == modes
    assert found.macs_share <= share + 1e-12
    assert not could_keep_more(model, found.plan, batch[:1], share)
    is_carried_by_its_plan(model.eval(), found, batch)


def test_the_consumers_of_a_group_may_have_different_numbers_of_features() -> None:
    """A group of a grouped convolution reads two channels and puts out three, which the next layer reads."""
    torch.manual_seed(0)
    agrees(
        DrawnNet(["plain", "residual", "grouped"], [4, 4, 4, 6], "batch", 4),
        IMAGES,
        0.6,
        "refit",
        "interpolation",
    )


def test_units_that_a_norm_leaves_nothing_to_say_are_folded_without_harm() -> None:
    """A layer norm over one unit says the same whatever it is fed."""
    torch.manual_seed(0)
    model = DrawnNet(["plain", "plain"], [4, 4, 4, 4], "layer", 2)
    asked = Prune(target=Widths({"layers.0": 1}), min_width=1)
    found = extract(model, [IMAGES], asked)
    assert all(bool(each.isfinite().all()) for each in found.ticket.state_dict().values())
