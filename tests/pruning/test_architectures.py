"""Extraction from every architecture: the ticket meets its target, is its plan's, and nears the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tpsprune
from tests.pruning.helpers import pruned_to
from tests.pruning.nets_attention import ATTENTIONS, Net, Packed, net, sequences
from tests.pruning.nets_structure import IMAGES, STRUCTURES, DrawnNet, OwnRmsNorm, Stream, case, conv1d
from tests.pruning.observed import noise
from tests.unchanged import unchanged
from tpsprune.errors import PruneError
from tpsprune.models import Mlp, TokenMlp, Transformer, build
from tpsprune.numerics.forward import logits_of
from tpsprune.numerics.macs import count_macs
from tpsprune.pruning import Extraction, Plan, extract, find_groups
from tpsprune.pruning.costs import cost_model
from tpsprune.pruning.output_error import output_error
from tpsprune.pruning.replay import replay
from tpsprune.pruning.surgery import pruned_copy
from tpsprune.recipe.prune import Macs, Prune, Widths
from tpsprune.recipe.task import TransformersModel
from tpsprune.records import TaskFacts

PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
"""Shrinking a failure would take minutes."""
FITTED = st.sampled_from([(True, True), (True, False), (False, False)])
"""Whether consumers are compensated, and layers reconstructed."""


SELECTED = ("layer norm", "rms norm", "rms norm of somebody's own", "Conv1D", "vision transformer")
SELECTED += ("depthwise", "grouped, blocks", "grouped, bundles", "group norm")
SELECTED += ("skip and transposed convolution",)


def built(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if name in STRUCTURES:
        return case(name)
    return Net(Packed()) if name == "packed" else net(name), sequences(48)


def is_its_plans(model: nn.Module, found: Extraction, batch: Tensor) -> None:
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
    output = ticket(batch)
    assert torch.equal(shell(batch), output)
    assert output.shape == model(batch).shape
    output.square().mean().backward()
    assert all(bool(each.grad.isfinite().all()) for each in ticket.parameters() if each.grad is not None)
    assert any(each.grad is not None for each in ticket.parameters())


def could_keep_more(model: nn.Module, plan: Plan, batch: Tensor, target: float) -> list[str]:
    """Return the groups of which the plan could keep one more unit, by counting on the wider network."""
    dense = count_macs(model, batch).total
    found = []
    for rank, group in enumerate(plan.groups):
        if group.removed:
            wider = [*plan.groups]
            wider[rank] = replace(group, kept=tuple(sorted((*group.kept, group.removed[0]))))
            share = count_macs(replay(model, replace(plan, groups=tuple(wider))), batch).total / dense
            if share <= target:
                found.append(f"{group.name}: {share:.4f}")
    return found


@pytest.mark.parametrize("name", [*SELECTED, "packed", *ATTENTIONS])
def test_a_ticket_meets_its_target_is_its_plans_and_comes_nearer_by_compensation(name: str) -> None:
    """Nearer of the same units, on the items that layers were fitted on."""
    model, batch = built(name)
    model.eval()
    same = Prune(target=Macs(0.6), round_to=1, units="pivoted-cholesky", recalibrate=False)
    found = extract(model, batch.split(24), Prune(target=Macs(0.6), round_to=1))
    removal = extract(model, [batch], replace(same, compensate=False))
    for each in (found, removal):
        assert each.macs_share <= 0.6
        assert not could_keep_more(model, each.plan, batch[:1], 0.6)
        is_its_plans(model, each, batch)
    error = output_error(removal.ticket, model, [batch])
    for refit in (True, False):
        ticket = extract(model, [batch], replace(same, reconstruct=refit)).ticket
        assert output_error(ticket, model, [batch]) < error


@settings(max_examples=20, deadline=None, phases=PHASES)
@given(
    kinds=st.lists(st.sampled_from(["plain", "grouped", "depthwise", "residual"]), max_size=3),
    half_widths=st.lists(st.integers(2, 5), min_size=4, max_size=4),
    norm=st.sampled_from(["batch", "group", "one-group", "layer", "none"]),
    hidden=st.integers(2, 8),
    bias=st.booleans(),
    share=st.floats(0.3, 0.9),
    fitted=FITTED,
    units=st.sampled_from(["interpolation", "pivoted-cholesky"]),
    training=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_so_it_is_on_random_networks(
    kinds: list[str],
    half_widths: list[int],
    norm: str,
    hidden: int,
    bias: bool,
    share: float,
    fitted: tuple[bool, bool],
    units: str,
    training: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    model = DrawnNet(kinds, [2 * half for half in half_widths], norm, hidden).train(training)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not bias:
            module.register_parameter("bias", None)
    agrees(model, noise(24, 2, 6, 6, seed=seed), share, fitted, units)


@settings(max_examples=15, deadline=None, phases=PHASES)
@given(
    norm=st.sampled_from([nn.LayerNorm, nn.RMSNorm, OwnRmsNorm, nn.Identity]),
    width=st.integers(3, 10),
    depth=st.integers(0, 3),
    turned=st.booleans(),
    share=st.floats(0.3, 0.9),
    fitted=FITTED,
    units=st.sampled_from(["interpolation", "pivoted-cholesky"]),
    seed=st.integers(0, 1000),
)
def test_and_on_streams_of_vectors(
    norm: Callable[[int], nn.Module],
    width: int,
    depth: int,
    turned: bool,
    share: float,
    fitted: tuple[bool, bool],
    units: str,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    # In double precision: a norm over three features makes a spread of its own out of single rounding.
    model = Stream(norm, width, depth, conv1d if turned else nn.Linear).double()
    agrees(model, noise(24, 4, 5, seed=seed).double(), share, fitted, units)


def agrees(model: nn.Module, batch: Tensor, share: float, fitted: tuple[bool, bool], units: str) -> None:
    """Assert that a target within reach is met, not needlessly undercut, and the ticket its plan's."""
    chosen = Prune(
        target=Macs(share), units=units, compensate=fitted[0], reconstruct=fitted[1],
        min_width=1, max_pruning_ratio=0.99, round_to=1,
    )  # fmt: skip
    modes = [module.training for module in model.modules()]
    try:
        found = extract(model, batch.split(12), chosen)
    except PruneError as error:
        assert "cannot be reached" in str(error)  # noqa: PT017
        assume(False)
    assert [module.training for module in found.ticket.modules()] == modes
    assert found.macs_share <= share + 1e-12
    assert not could_keep_more(model, found.plan, batch[:1], share)
    is_its_plans(model.eval(), found, batch)


def test_the_consumers_of_a_group_may_have_different_numbers_of_features() -> None:
    """A group of a grouped convolution has two inputs and three outputs, which the next layer reads."""
    torch.manual_seed(0)
    model = DrawnNet(["plain", "residual", "grouped"], [4, 4, 4, 6], "batch", 4)
    agrees(model, IMAGES, 0.6, (True, True), "interpolation")


def test_units_of_which_a_norm_leaves_nothing_are_compensated_without_harm() -> None:
    """A layer norm over one unit gives the same whatever its input."""
    torch.manual_seed(0)
    model = DrawnNet(["plain", "plain"], [4, 4, 4, 4], "layer", 2)
    chosen = Prune(target=Widths({"layers.0": 1}), min_width=1)
    found = extract(model, [IMAGES], chosen)
    assert all(bool(each.isfinite().all()) for each in found.ticket.state_dict().values())


PAIRS = torch.cartesian_prod(torch.arange(11), torch.arange(11))
BRACKETS = torch.randint(2, (100, 9), generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
ONE_LAYER, EARLIER = {"embedding": 16, "q": 4, "mlp_in": 32}, {"earlier.0.q": 4, "earlier.0.mlp_in": 32}


def gated_on_tokens() -> TokenMlp:
    return TokenMlp(11, 2, 8, (32,), 11, gated=True)


NAMED: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, int]]] = {
    "gated": (lambda: Mlp(12, (32, 16), 3, gated=True), ROWS, {"hidden.0.gate": 32, "hidden.1.gate": 16}),
    "gated on tokens": (gated_on_tokens, PAIRS, {"embedding": 8, "hidden.0.gate": 32}),
    "two layers": (lambda: Transformer(11, 16, 4, 32, 11, layers=2), PAIRS, ONE_LAYER | EARLIER),
    "mlp on brackets": (lambda: TokenMlp(2, 9, 4, (32,), 5), BRACKETS, {"embedding": 4, "hidden.0": 32}),
    "one layer on brackets": (lambda: Transformer(2, 16, 4, 32, 5, length=9), BRACKETS, ONE_LAYER),
    "two on brackets": (
        lambda: Transformer(2, 16, 4, 32, 5, length=9, layers=2), BRACKETS, ONE_LAYER | EARLIER,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_a_named_model_is_pruned_to_half_of_its_operations_and_verified(name: str) -> None:
    make, batch, _ = NAMED[name]
    torch.manual_seed(0)
    extraction = tpsprune.extract(make(), batch, target=tpsprune.Macs(0.5))
    assert 0.4 < extraction.macs_share <= 0.5
    assert extraction.ticket(batch).shape == make()(batch).shape


@pytest.mark.parametrize("name", NAMED)
def test_its_groups_are_found_and_cost_what_is_counted_without_a_unit_of_each(name: str) -> None:
    """One attention lies inside the other's module here, and each takes its own products along."""
    make, batch, expected = NAMED[name]
    torch.manual_seed(0)
    model = make().eval()
    groups = find_groups(model, batch).groups
    assert {group.name: group.width for group in groups} == expected
    costs = cost_model(model, groups, count_macs(model, batch[:2]), Prune())
    for rank in range(len(groups)):
        widths = [group.width - (place == rank) for place, group in enumerate(groups)]
        ticket = pruned_copy(model, pruned_to(groups, widths))
        assert costs.at(widths) == pytest.approx(count_macs(ticket, batch[:2]).total)


def test_an_attention_left_alone_inside_anothers_module_costs_what_it_did() -> None:
    model = Transformer(11, 16, 4, 32, 11, layers=2).eval()
    groups = find_groups(model, PAIRS, ["earlier.*"]).groups
    assert [group.name for group in groups] == ["q", "mlp_in"]
    costs = cost_model(model, groups, count_macs(model, PAIRS[:2]), Prune())
    ticket = pruned_copy(model, pruned_to(groups, (2, 32)))
    assert costs.at((2, 32)) == pytest.approx(count_macs(ticket, PAIRS[:2]).total)


def test_a_gate_is_pruned_with_the_half_that_it_multiplies() -> None:
    ticket = tpsprune.extract(gated_on_tokens(), PAIRS, target=tpsprune.Widths({"hidden.0.gate": 10})).ticket
    layer = ticket.hidden[0]
    assert (layer.gate.out_features, layer.up.out_features, ticket.head.in_features) == (10, 10, 10)
    assert ticket.unit_triplets(PAIRS)[2].shape == (20, 11)


LENGTH, VOCABULARY = 12, 40
FACTS = TaskFacts(input_kind="tokens", input_shape=(LENGTH,), classes=VOCABULARY, vocabulary=VOCABULARY)
GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": LENGTH}
LLAMA: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA |= {"intermediate_size": 48, "max_position_embeddings": LENGTH}
LANGUAGE: dict[str, TransformersModel] = {
    "gpt2": TransformersModel(architecture="GPT2LMHeadModel", config=GPT2),
    "gpt2, head of its own": TransformersModel(
        architecture="GPT2LMHeadModel", config=GPT2 | {"tie_word_embeddings": False}
    ),
    "llama": TransformersModel(architecture="LlamaForCausalLM", config=LLAMA | {"num_key_value_heads": 2}),
}


@cache
def trained(name: str) -> nn.Module:
    """Build a model and train it for a moment: the next token is twice the last."""
    pytest.importorskip("transformers", reason="the models are of transformers")
    torch.manual_seed(0)
    model = build(LANGUAGE[name], FACTS).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        tokens_nl = torch.randint(0, VOCABULARY, (32, 1)).repeat(1, LENGTH)
        tokens_nl = (tokens_nl * 2 ** torch.arange(LENGTH)) % VOCABULARY
        logits_nlv = logits_of(model(tokens_nl))
        loss = nn.functional.cross_entropy(logits_nlv[:, :-1].flatten(0, 1), tokens_nl[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def logits(model: nn.Module, tokens_nl: Tensor) -> Tensor:
    with torch.no_grad():
        return logits_of(model(tokens_nl))


def texts(items: int) -> Tensor:
    first_n1 = torch.arange(items)[:, None] % VOCABULARY
    return (first_n1 * 2 ** torch.arange(LENGTH)) % VOCABULARY


@pytest.mark.parametrize("name", LANGUAGE)
def test_heads_and_units_of_a_language_model_are_pruned(name: str) -> None:
    model = trained(name)
    with unchanged(model):
        found = tpsprune.extract(model, texts(64), target=tpsprune.Macs(0.7))
    kinds = {change.kind for change in found.changes}
    assert {"heads", "units"} <= kinds, found.unpruned
    lost = {change.kind for change in found.changes if change.width_after < change.width_before}
    assert lost
    assert found.macs_share <= 0.7
    outputs = logits(found.ticket, texts(8))
    assert outputs.shape == (8, LENGTH, VOCABULARY)
    assert bool(outputs.isfinite().all())
    if name == "gpt2":
        for each in (model, found.ticket, tpsprune.replay(model, found.plan)):
            assert each.lm_head.weight is each.transformer.wte.weight, "a tied head remains tied"
            assert each.lm_head.weight.shape == (VOCABULARY, 32)


@pytest.mark.parametrize("name", LANGUAGE)
def test_lightly_pruned_it_predicts_nearly_as_before(name: str) -> None:
    model = trained(name)
    ticket = tpsprune.extract(model, texts(64), target=tpsprune.Macs(0.85)).ticket
    dense, light = logits(model, texts(40)), logits(ticket, texts(40))
    assert (dense.argmax(-1) == light.argmax(-1)).float().mean().item() > 0.8
