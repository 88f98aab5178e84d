"""What tracing and slicing did to people elsewhere, each trap by number; the others are with their files."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from tests.pruning.nets_structure import Stream
from tpsprune.measure import latency
from tpsprune.numerics.forward import count_macs
from tpsprune.pruning.cutting import cut_copy
from tpsprune.pruning.groups import GroupCut
from tpsprune.pruning.plan import Plan, signature_of, versions
from tpsprune.pruning.replay import replay
from tpsprune.pruning.survey import survey


def halved(model: nn.Module, batch: Tensor) -> tuple[nn.Module, tuple[GroupCut, ...]]:
    cuts = tuple(
        GroupCut.of(group, range(0, group.width, 2))
        for group in survey(model, batch).groups
        if group.width > 1
    )
    return cut_copy(model, cuts), cuts


def test_trap_1_the_model_was_left_in_evaluation_mode(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("residual")
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    ticket, _ = halved(model, batch)
    assert [module.training for module in model.modules()] == modes
    assert [module.training for module in ticket.modules()] == modes


def test_trap_3_a_frozen_stem_was_invisible_and_thawed(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("cnn")
    model.body[0].requires_grad_(False)
    ticket, cuts = halved(model, batch)
    assert cuts[0].name == "body.0"
    assert len(ticket.body[0].weight) == 3
    assert not ticket.body[0].weight.requires_grad
    assert ticket.body[3].weight.requires_grad
    assert ticket(batch).shape == model(batch).shape


def test_trap_3_a_model_frozen_whole_was_not_pruned_and_nobody_said_so(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("mlp")
    model.requires_grad_(False)
    assert len(survey(model, batch).groups) == 2


def test_trap_5_fresh_batch_norms_that_tie_all_scores_hid_every_group(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("cnn")
    assert all(
        bool((module.weight == 1).all()) for module in model.modules() if isinstance(module, nn.BatchNorm2d)
    )
    assert [group.width for group in survey(model, batch).groups] == [6, 8]


def test_trap_6_a_layer_whose_weights_are_all_zero_was_skipped_without_a_word(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("cnn")
    nn.init.zeros_(model.body[0].weight)
    assert survey(model, batch).groups[0].name == "body.0"


def test_trap_7_a_cap_was_no_cap_and_layers_ended_narrower_than_was_said(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("residual")
    ticket, cuts = halved(model, batch)
    for cut in cuts:
        assert len(ticket.get_submodule(cut.name).weight) == len(cut.kept)


def test_trap_8_the_replay_built_another_network_than_the_cut_had(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("mixed")
    ticket, cuts = halved(model, batch)
    plan = Plan(target="macs=0.5", groups=cuts, new_biases=(), versions=versions(), model=signature_of(model))
    again = replay(model, Plan.from_json(plan.to_json()))
    assert str(again) == str(ticket)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in ticket.state_dict().items())


@pytest.mark.parametrize("name", ["cnn", "residual", "mixed", "mlp", "token-mlp", "transformer"])
def test_trap_9_the_classifier_lost_classes(zoo: SimpleNamespace, name: str) -> None:
    model, batch = zoo.case(name)
    ticket, _ = halved(model, batch)
    assert ticket(batch).shape == model(batch).shape


def test_trap_10_the_heads_of_one_model_leaked_into_the_survey_of_the_next(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("transformer")
    first = survey(model, batch)
    survey(zoo.Transformer(heads=4), batch)
    assert survey(model, batch) == first
    assert (model.heads, model.q.out_features) == (2, 8)


def test_trap_11_an_rms_norm_kept_its_old_width_and_crashed() -> None:
    batch = torch.randn(2, 3, 5)
    ticket, cuts = halved(Stream(nn.RMSNorm), batch)
    assert cuts[0].name == "embed"
    assert ticket.norm.normalized_shape == (4,)
    assert ticket(batch).shape == (2, 3, 3)


class Chunked(nn.Module):
    """Fused q, k and v taken apart by chunk, under positions that are a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.positions = nn.Parameter(torch.randn(1, 3, 8))
        self.qkv, self.o = nn.Linear(8, 24), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)
        self.num_heads = 2

    def forward(self, x_btd: Tensor) -> Tensor:
        x_btd = self.embed(x_btd) + self.positions
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in self.qkv(x_btd).chunk(3, dim=-1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(x_btd + self.o(mixed))


def test_trap_12_a_chunk_into_q_k_and_v_beside_positions_was_an_index_error() -> None:
    batch = torch.randn(2, 3, 5)
    ticket, cuts = halved(Chunked(), batch)
    assert [cut.name for cut in cuts] == ["embed", "qkv"]
    assert ticket.positions.shape == (1, 3, 4)
    assert ticket(batch).shape == (2, 3, 3)


class TiedLanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens_bt: Tensor) -> Tensor:
        x_btd = self.embedding(tokens_bt)
        return self.head(x_btd + self.down(functional.relu(self.up(x_btd))))


def test_trap_15_tied_weights_were_untied_and_the_model_grew() -> None:
    model = TiedLanguageModel()
    batch = torch.tensor([[0, 1], [2, 3]])
    ticket, cuts = halved(model, batch)
    assert [cut.name for cut in cuts] == ["up"]
    assert ticket.head.weight is ticket.embedding.weight
    assert sum(p.numel() for p in ticket.parameters()) < sum(p.numel() for p in model.parameters())
    assert "also that of head" in {e.name: e.reason for e in survey(model, batch).left_alone}["embedding"]


class Around(nn.Module):
    """A linear layer on each side of something, and a wide one behind that can be cut whatever that is."""

    def __init__(self, middle: nn.Module, *, width: int = 6) -> None:
        super().__init__()
        self.before = nn.Linear(5, 6)
        self.middle = middle
        self.wide, self.head = nn.Linear(width, 8), nn.Linear(8, 3)

    def forward(self, x_btd: Tensor) -> Tensor:
        answer = self.middle(functional.relu(self.before(x_btd)))
        answer = answer[0] if isinstance(answer, tuple) else answer
        return self.head(functional.relu(self.wide(answer)))


class HoldsBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.aside = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.aside(x.detach()).detach()


class RawMatrix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.raw


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (nn.LSTM(6, 6, batch_first=True), "nn.LSTM cannot be cut"),
        (nn.GRU(6, 6, batch_first=True), "nn.GRU cannot be cut"),
        (parametrizations.weight_norm(nn.Linear(6, 6)), "parametrised"),
        (HoldsBuffer(), "does not run without some of its units"),
        (Detached(), "does not run without some of its units"),
        (RawMatrix(), "does not run without some of its units"),
    ],
)
def test_trap_16_what_cannot_be_cut_safely_crashed(middle: nn.Module, reason: str) -> None:
    model = Around(copy.deepcopy(middle))
    batch = torch.randn(2, 4, 5)
    left = {each.name: each.reason for each in survey(model, batch).left_alone}
    assert {"before"} <= set(left)
    assert any(reason in each for each in left.values())
    ticket, cuts = halved(model, batch)
    assert [cut.name for cut in cuts] == ["wide"]
    assert ticket(batch).shape == (2, 4, 3)


def test_trap_22_a_survey_under_no_grad_found_nothing(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("residual")
    expected = survey(model, batch)
    with torch.no_grad():
        assert survey(model, batch) == expected


class Marked(Tensor):
    """A tensor of somebody's own class, as data loaders hand out."""


def test_trap_22_a_batch_of_somebodys_own_tensor_class_broke_the_graph(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("cnn")
    assert survey(model, batch.as_subclass(Marked)) == survey(model, batch)


def test_trap_20_attention_was_left_out_of_the_count_of_multiplications(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("transformer")
    length, width = batch.shape[1], 8
    weights = sum(
        layer.weight.numel()
        for layer in model.modules()
        if isinstance(layer, nn.Linear) and layer.out_features != 7
    )
    # The last position alone is read out; scores and their weighted sum are length² · width each.
    expected = length * weights + 7 * width + 2 * length**2 * width
    assert count_macs(model, batch).total == expected


def test_trap_21_channels_last_was_lost_and_latency_wanted_a_gpu(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("residual")
    model = model.to(memory_format=torch.channels_last)
    ticket, _ = halved(model, batch)
    convolutions = [module for module in ticket.modules() if isinstance(module, nn.Conv2d)]
    assert all(each.weight.is_contiguous(memory_format=torch.channels_last) for each in convolutions)
    assert latency(ticket, batch[0], 2, seconds=0.01).median_seconds > 0
