"""Experts of transformers: opened, pruned expert by expert to one width, and closed again."""

from __future__ import annotations

import copy
import importlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tpsprune
from tests.unchanged import unchanged
from tpsprune.errors import ArtifactError, PruneError
from tpsprune.models.libraries import help_torchvision
from tpsprune.numerics.macs import count_macs
from tpsprune.pruning import Plan, carry_state, check_ticket, extract, replay
from tpsprune.pruning.lockstep import collect_all_calls, traverse_in_step
from tpsprune.pruning.open_experts import OpenExperts, parts_of_experts, why_experts_stay_closed
from tpsprune.pruning.opening import (
    close_layers,
    closed_shapes,
    open_layers,
    open_what_computes_alike,
    opened_shapes,
)
from tpsprune.pruning.output_error import output_error
from tpsprune.pruning.replay import compose
from tpsprune.recipe.prune import Latency, Prune

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 32, "use_cache": False}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
FAMILIES: dict[str, dict[str, Any]] = {
    "MixtralForCausalLM": {"intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen3MoeForCausalLM": {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2},
    # Transposed, gate and up alternate, with biases.
    "GptOssForCausalLM": {"intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2}
    | {"layer_types": ["full_attention"] * 2},
}
BATCHES = [{"input_ids": part} for part in torch.randint(3, 32, (96, 10)).split(32)]


def family(name: str) -> Any:
    """Return a small model of a family with random weights large enough that its experts matter."""
    help_torchvision()
    library: Any = importlib.import_module("transformers")
    torch.manual_seed(0)
    architecture = getattr(library, name)
    model = architecture(architecture.config_class(**SIZES, **HEADS, **ENDS, **FAMILIES[name]))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model.eval()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**BATCHES[0]).logits
    return found


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_opened_experts_compute_what_closed_ones_do_and_close_to_what_they_were(name: str) -> None:
    model = family(name)
    opened, names = open_layers(model)
    assert names == ("model.layers.0.mlp.experts", "model.layers.1.mlp.experts")
    assert isinstance(opened.get_submodule(names[0]), OpenExperts)
    assert torch.allclose(logits(model), logits(opened), atol=1e-5)
    close_layers(opened)
    assert type(opened.get_submodule(names[0])) is type(model.get_submodule(names[0]))
    for (ours, a), (theirs, b) in zip(opened.state_dict().items(), model.state_dict().items(), strict=True):
        assert ours == theirs
        assert torch.equal(a, b)
        assert a.stride() == b.stride()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_shapes_of_the_opened_model_follow_from_those_of_the_closed_one(name: str) -> None:
    model = family(name)
    opened, names = open_layers(model)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = opened_shapes(shapes, names)
    assert found == {key: tuple(value.shape) for key, value in opened.state_dict().items()}
    assert closed_shapes(found, names, shapes) == shapes


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_experts_lose_equally_many_units_each_its_own_and_keep_their_class(name: str) -> None:
    model = family(name)
    with unchanged(model):
        found = tpsprune.extract(model, BATCHES, tpsprune.Macs(0.6), quality="fast")
    experts = [each for each in found.plan.groups if each.name.startswith("model.layers.0.mlp.experts.")]
    assert len(experts) == 4
    assert len({len(each.kept) for each in experts}) == 1
    assert len({each.kept for each in experts}) > 1
    module = found.ticket.get_submodule("model.layers.0.mlp.experts")
    assert type(module) is type(model.model.layers[0].mlp.experts)
    hidden = len(experts[0].kept)
    assert module.down_proj.shape == ((4, hidden, 16) if "GptOss" in name else (4, 16, hidden))
    stored = [value for key, value in vars(module).items() if key.startswith("intermediate")]
    assert stored == [hidden]
    few = {"input_ids": BATCHES[0]["input_ids"][:2]}
    assert found.macs_share <= 0.6
    assert count_macs(found.ticket, few).total / count_macs(model, few).total == pytest.approx(
        found.macs_share
    )
    check_ticket(found.ticket, found.plan)
    again = replay(model, found.plan)
    check_ticket(again, found.plan)
    shell = copy.deepcopy(model).to("meta")
    check_ticket(replay(shell, found.plan), found.plan)
    assert "cannot" not in " ".join(found.notes)
    # Reports name what a target by name does.
    assert [each.group for each in found.changes if "experts" in each.group] == [
        f"model.layers.{layer}.mlp.experts" for layer in range(2)
    ]
    assert all(each.requires_grad for ticket in (found.ticket, again) for each in ticket.parameters())


@pytest.mark.filterwarnings("ignore")
def test_units_that_every_expert_has_twice_are_merged_without_loss() -> None:
    model = family("MixtralForCausalLM")
    with torch.no_grad():
        for layer in model.model.layers:
            experts = layer.mlp.experts
            for expert in range(4):
                for rows in (experts.gate_up_proj[expert, :24], experts.gate_up_proj[expert, 24:]):
                    # Which unit is whose copy differs from expert to expert.
                    rows[12:] = rows[:12].roll(expert, 0)
    target = tpsprune.Widths({f"model.layers.{layer}.mlp.experts": 12 for layer in range(2)})
    found = tpsprune.extract(model, BATCHES, target, quality="fast")
    assert found.ticket.model.layers[0].mlp.experts.intermediate_dim == 12
    assert output_error(found.ticket, model, BATCHES) < 1e-6


@pytest.mark.filterwarnings("ignore")
def test_a_width_that_a_grouped_product_does_not_take_is_refused_and_never_chosen() -> None:
    model = family("MixtralForCausalLM")
    name = "model.layers.0.mlp.experts"
    with pytest.raises(PruneError, match=rf"'{name}' can keep multiples of 4 units \(found 10\)"):
        tpsprune.extract(model, BATCHES, tpsprune.Widths({name: 10}), quality="fast")
    found = tpsprune.extract(model, BATCHES, tpsprune.Macs(0.7), quality="fast", round_to=1)
    widths = {len(each.kept) for each in found.plan.groups if ".experts." in each.name}
    assert all(width % 4 == 0 for width in widths)


@pytest.mark.filterwarnings("ignore")
def test_in_lock_step_experts_see_the_tokens_that_the_dense_models_experts_saw() -> None:
    dense, names = open_layers(family("Qwen3MoeForCausalLM"))
    other = copy.deepcopy(dense)
    with torch.no_grad():
        for layer in other.model.layers:
            layer.mlp.gate.weight.normal_()
    layers = [
        f"{name}.{expert}.{layer}"
        for name in names
        for expert in range(4)
        for layer in ("up_proj", "down_proj")
    ]
    seen = set()
    for stop in traverse_in_step(dense, other, BATCHES, layers):
        assert stop.batches
        assert all(torch.equal(each.dense, each.pruned) for each in stop.batches)
        seen.add(stop.module)
    assert seen == set(layers)
    calls = collect_all_calls(dense, other, BATCHES, layers[0])
    assert all(torch.equal(each.dense, each.pruned) for each in calls)


@pytest.mark.parametrize("name", ["MixtralForCausalLM", "GptOssForCausalLM"])
@pytest.mark.filterwarnings("ignore")
def test_optimizer_state_follows_where_the_layout_is_known_and_a_second_plan_joins_the_first(
    name: str,
) -> None:
    model = family(name)
    first = tpsprune.extract(model, BATCHES, tpsprune.Macs(0.7), quality="fast")
    state = {key: {"exp_avg": value.detach().clone()} for key, value in model.named_parameters()}
    carried = carry_state(state, first.plan)
    plain = dict(replay(model, first.plan).named_parameters())
    packed = {key for key in plain if ".experts." in key}
    assert plain.keys() - carried.keys() == (packed if "GptOss" in name else set())
    for key, entries in carried.items():
        assert torch.equal(entries["exp_avg"], plain[key])
    second = tpsprune.extract(first.ticket, BATCHES, tpsprune.Macs(0.8), quality="fast")
    both = compose(first.plan, second.plan)
    once, twice = replay(model, both), replay(replay(model, first.plan), second.plan)
    for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore")
def test_experts_of_unknown_code_stay_closed_with_the_reason() -> None:
    model = family("MixtralForCausalLM")
    first, second = (layer.mlp.experts for layer in model.model.layers)
    first.register_forward_hook(lambda *_: None)
    second.extra = nn.Parameter(torch.ones(3))
    _, names = open_layers(model)
    assert names == ()
    assert open_what_computes_alike(model, {"input_ids": BATCHES[0]["input_ids"][:2]})[2] == {
        "model.layers.0.mlp.experts": "hooks are attached to it",
        "model.layers.1.mlp.experts": "it holds a tensor of its own, 'extra'",
    }
    third = copy.deepcopy(second)
    del third.extra
    assert why_experts_stay_closed(third) == ""
    third.act_fn = nn.Tanh()
    third._apply_gate = lambda both: torch.tanh(both[..., :24]) * both[..., 24:]
    assert why_experts_stay_closed(third).startswith("it is called in a way of its own")


@pytest.mark.filterwarnings("ignore")
def test_frozen_experts_stay_frozen_and_others_are_repaired() -> None:
    model = family("MixtralForCausalLM")
    frozen = model.model.layers[0].mlp.experts.requires_grad_(False)
    assert not any(each.requires_grad for each in frozen.parameters())
    cut = tpsprune.extract(model, BATCHES, tpsprune.Macs(0.7), quality="fast").ticket
    repaired = tpsprune.extract(
        model, BATCHES, tpsprune.Macs(0.7), repair_steps=20, repair_learning_rate=3e-4
    )
    assert "20 steps of repair lowered" in repaired.notes[-1]
    whole = repaired.ticket
    flags = [[p.requires_grad for p in layer.mlp.experts.parameters()] for layer in whole.model.layers]
    assert flags == [[False] * 2, [True] * 2]
    for layer, moved in ((0, False), (1, True)):
        ours, theirs = (each.model.layers[layer].mlp.experts.down_proj for each in (whole, cut))
        assert torch.equal(ours, theirs) != moved


@pytest.mark.parametrize("widths", ["effective-rank", "greedy", "global-magnitude"])
@pytest.mark.filterwarnings("ignore")
def test_experts_that_no_calibration_item_reaches_are_cut_and_a_note_says_so(widths: str) -> None:
    many = {**FAMILIES["Qwen3MoeForCausalLM"], "num_experts": 16, "num_experts_per_tok": 1}
    help_torchvision()
    library: Any = importlib.import_module("transformers")
    torch.manual_seed(0)
    config = library.Qwen3MoeConfig(**SIZES, **HEADS, **ENDS, **many)
    model = library.Qwen3MoeForCausalLM(config).eval()
    batches = [{"input_ids": torch.randint(3, 32, (2, 3))}]
    found = tpsprune.extract(model, batches, tpsprune.Macs(0.8), quality="fast", widths=widths)
    assert any("no calibration item reached it" in note for note in found.notes)


@pytest.mark.filterwarnings("ignore")
def test_a_latency_is_measured_on_closed_experts() -> None:
    model = family("MixtralForCausalLM")
    seen = set()

    def clock(timed: nn.Module) -> float:
        seen.update(type(each).__name__ for each in timed.modules() if "Experts" in type(each).__name__)
        return float(sum(each.numel() for each in timed.parameters()))

    settings = Prune(target=Latency(0.8), quality="fast")
    found = extract(model, BATCHES, settings, clock=clock)
    assert seen == {"MixtralExperts"}
    assert clock(found.ticket) <= 0.8 * clock(model)


@pytest.mark.filterwarnings("ignore")
def test_experts_under_two_names_stay_closed() -> None:
    model = family("MixtralForCausalLM")
    model.alias = model.model.layers[0].mlp.experts
    found = tpsprune.extract(model, BATCHES, tpsprune.Macs(0.8), quality="fast")
    named = [each for each in found.unpruned if "several names" in each.reason]
    assert [each.name for each in named] == ["model.layers.0.mlp.experts"]
    assert found.ticket.alias is found.ticket.model.layers[0].mlp.experts


@pytest.mark.filterwarnings("ignore")
def test_a_plan_by_hand_that_leaves_experts_unequal_or_opens_too_many_is_refused() -> None:
    model = family("MixtralForCausalLM")
    found = tpsprune.extract(model, BATCHES, tpsprune.Macs(0.7), quality="fast")
    rank = next(rank for rank, each in enumerate(found.plan.groups) if ".experts." in each.name)
    uneven = list(found.plan.groups)
    uneven[rank] = replace(uneven[rank], kept=uneven[rank].kept[:4])
    with pytest.raises(PruneError, match="experts of different widths cannot be held in one tensor"):
        replay(model, replace(found.plan, groups=tuple(uneven)))
    raw = found.plan.to_json()
    for changes in ({"opened": [*raw["opened"], raw["opened"][0]]}, {"opened": ["model.norm.nothing"]}):
        with pytest.raises(ArtifactError, match=r"plan\.opened: .* is no module in plan"):
            Plan.from_json(raw | changes)
    assert parts_of_experts("e", {"e.up_proj": (10**12, 4, 4), "e.down_proj": (10**12, 4, 4)}) == {}
