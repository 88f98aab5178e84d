from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from tests.pruning import nets_structure as zoo
from tests.pruning.nets_attention import (
    ATTENTIONS,
    HEADS,
    WIDTH,
    Net,
    OneKey,
    Packed,
    Rotary,
    Talking,
    attend,
    by_head,
    net,
    proved,
    sequences,
    the_heads,
)
from tpsprune.models import build
from tpsprune.pruning.attention import MOST_CANDIDATES, propose_head_groups
from tpsprune.pruning.groups import Attribute, PrunedGroup, Slice
from tpsprune.pruning.layers import length
from tpsprune.pruning.opening import open_layers
from tpsprune.pruning.surgery import mask_units, pruned_copy
from tpsprune.recipe.task import TransformersModel
from tpsprune.records import TaskFacts


@pytest.mark.parametrize("name", ATTENTIONS)
def test_whole_heads_are_found_and_pruning_them_is_masking_them(name: str) -> None:
    model, batch = net(name), sequences()
    group = the_heads(model, batch)
    assert group.kind == "heads"
    assert group.width == (2 if name == "grouped queries, fused" else HEADS)
    assert len(group.cores) == 1
    (consumer,) = group.consumers
    assert consumer.positions == 1
    assert consumer.features * group.width == length(model.get_submodule(consumer.module), "in")
    for kept in ([0], [group.width - 1], [*range(1, group.width)]):
        pruned = PrunedGroup.of(group, kept)
        masked = copy.deepcopy(model).eval()
        mask_units(masked, group, pruned.removed)
        ticket = pruned_copy(model, (pruned,))
        assert torch.allclose(ticket.eval()(batch), masked(batch), atol=1e-5)
        ticket.train()(batch).sum().backward()
        assert all(p.grad is not None and p.grad.shape == p.shape for p in ticket.parameters())


def test_the_layouts_are_those_of_the_closed_form() -> None:
    def runs(name: str) -> set[tuple[str, int, int, int, int]]:
        weights = [
            each for each in the_heads(net(name), sequences()).slices if each.tensor.endswith("weight")
        ]
        return {
            (each.tensor.split(".")[-2], each.offset, each.block, each.repeat, each.stride)
            for each in weights
        }

    assert runs("fused by part") == {("qkv", 0, 4, 3, 12), ("proj", 0, 4, 1, 0)}
    assert runs("fused by head") == {("query_key_value", 0, 12, 1, 0), ("dense", 0, 4, 1, 0)}
    assert runs("grouped queries, fused") == {("wqkv", 0, 6, 1, 0), ("wqkv", 12, 3, 2, 6), ("wo", 0, 6, 1, 0)}
    assert runs("multi-query") == {("query", 0, 4, 1, 0), ("out", 0, 4, 1, 0)}
    queries, keys = (
        {(f"{part}_proj", 0, 4, 2, 12) for part in "qo"},
        {(f"{part}_proj", 0, 4, 1, 0) for part in "kv"},
    )
    assert runs("grouped queries, tiled") == queries | keys


def test_numbers_that_follow_the_heads_are_reset_and_no_others() -> None:
    model = net("fused by part")
    group = the_heads(model, sequences())
    assert group.attributes == (
        Attribute("attention", "num_heads", 1),
        Attribute("attention", "attn_dim", WIDTH // HEADS),
    )
    ticket = pruned_copy(model, (PrunedGroup.of(group, [1, 2]),))
    sizes = [getattr(ticket.attention, name) for name in ("num_heads", "head_dim", "attn_dim", "scale")]
    assert sizes == [2, 4, 8, 0.5]
    assert model.attention.num_heads == HEADS


def test_a_table_with_a_column_for_each_head_loses_the_columns_of_pruned_ones() -> None:
    model = net("cross, fused keys and values")
    group = the_heads(model, sequences())
    assert Slice("attention.position_bias", 1, 0, 1) in group.slices
    ticket = pruned_copy(model, (PrunedGroup.of(group, [0, 2]),))
    assert torch.equal(ticket.attention.position_bias, model.attention.position_bias[:, [0, 2]])


def test_a_gate_on_the_output_of_heads_is_pruned_with_them() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net("separate").attention
            self.inner.gate = nn.Linear(WIDTH, WIDTH)

        def forward(self, x_btd: Tensor) -> Tensor:
            inner = self.inner
            layers = (inner.to_q, inner.to_k, inner.to_v)
            mixed = attend(*(by_head(layer(x_btd), inner.num_heads) for layer in layers))
            return inner.to_out(mixed * torch.sigmoid(inner.gate(x_btd)))

    assert "attention.inner.gate" in the_heads(Net(Gated()), sequences()).producers


def test_a_config_object_is_read_and_never_changed() -> None:
    class Configured(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(num_attention_heads=HEADS)
            self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

        def forward(self, x_btd: Tensor) -> Tensor:
            width = WIDTH // self.config.num_attention_heads
            return self.o(attend(*(by_head(layer(x_btd), -1, width) for layer in (self.q, self.k, self.v))))

    model = Net(Configured())
    group = the_heads(model, sequences())
    assert group.attributes == ()
    assert pruned_copy(model, (PrunedGroup.of(group, [1]),)).attention.config.num_attention_heads == HEADS


def test_heads_that_are_mixed_with_one_another_are_kept() -> None:
    model = Net(Talking())
    assert 0 < len(propose_head_groups(model)) <= MOST_CANDIDATES
    assert proved(model, sequences()) == {}


def test_a_number_of_heads_written_out_in_the_code_keeps_them_all() -> None:
    class Written(OneKey):
        def forward(self, x_btd: Tensor) -> Tensor:
            k, v = (each[:, None].expand(-1, 3, -1, -1) for each in self.kv(x_btd).chunk(2, -1))
            return self.out(attend(by_head(self.query(x_btd), 3, 4), k, v))

    assert proved(Net(Written()), sequences()) == {}


@pytest.mark.parametrize("name", ["cnn", "residual", "mixed", "mlp", "token-mlp"])
def test_a_net_without_attention_has_no_candidates(name: str) -> None:
    assert propose_head_groups(zoo.case(name)[0]) == ()


def test_multihead_attention_loses_whole_heads_once_it_is_open() -> None:
    torch.manual_seed(0)
    model = Net(Packed())
    assert propose_head_groups(model) == ()
    opened, _ = open_layers(model)
    group = the_heads(opened, sequences())
    assert group.attributes == (Attribute("attention.attn", "num_heads", 1),)
    ticket = pruned_copy(opened, (PrunedGroup.of(group, [0, 2]),)).eval()
    assert ticket.attention.attn.num_heads == 2
    with torch.no_grad():
        model.eval().attention.attn.out_proj.weight[:, 4:8] = 0.0
    assert torch.allclose(ticket(sequences()), model(sequences()), atol=1e-5)


def test_query_heads_are_pruned_with_the_keys_that_they_share() -> None:
    torch.manual_seed(0)
    model = Net(Rotary(queries=4, keys=2))
    group = the_heads(model, sequences())
    assert group.width == 2
    ticket = pruned_copy(model, (PrunedGroup.of(group, [1]),))
    attention = ticket.attention
    assert [attention.q_proj.out_features, attention.k_proj.out_features] == [8, 4]
    assert attention.num_key_value_groups == 2
    assert ticket(sequences()).shape == (8, 3)


def test_the_bert_of_hugging_face_can_lose_heads() -> None:
    pytest.importorskip("transformers", reason="the model is of transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "intermediate_size": 16, "num_attention_heads": 3}
    facts = TaskFacts(input_kind="tokens", input_shape=(6,), classes=2, vocabulary=50)
    bert = build(TransformersModel(architecture="BertForSequenceClassification", config=sizes), facts)
    assert the_heads(bert.eval(), {"input_ids": torch.arange(12).reshape(2, 6)}).width == 3
