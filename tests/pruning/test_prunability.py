from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from tpsprune.errors import PruneError
from tpsprune.pruning import Consumer, consumer_widths, find_groups
from tpsprune.pruning.coupling import trace_couplings


def reasons(model: nn.Module, batch: Tensor) -> dict[str, str]:
    return {each.name: each.reason for each in find_groups(model, batch).left_alone}


class Wrapped(nn.Module):
    """A stem, something in the middle, a head."""

    def __init__(self, middle: nn.Module, width: int = 6, out: int | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, width, 3, padding=1)
        self.middle = middle
        self.head = nn.Conv2d(out or width, 3, 1)

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.head(functional.relu(self.middle(functional.relu(self.stem(x_bchw)))))


def test_a_group_is_named_after_its_first_producer_and_knows_what_reads_it(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("cnn")
    first, second = find_groups(model, batch).groups
    assert (first.name, first.width, first.producers, first.members) == (
        "body.0",
        6,
        ("body.0",),
        ("body.1",),
    )
    assert first.consumers == (Consumer("body.3", 0, 1),)
    assert second.consumers == (Consumer("head", 0, 9, positions=9),)


def test_a_residual_stream_is_one_group_of_all_that_write_into_it(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("residual")
    groups = {group.name: group for group in find_groups(model, batch).groups}
    stream = groups["blocks.1.conv2"]
    assert stream.producers == ("blocks.1.conv2", "blocks.1.shortcut", "blocks.2.conv2")
    assert [each.module for each in stream.consumers] == ["blocks.2.conv1", "head"]
    assert len(groups) == 5


def test_a_gate_and_a_depthwise_convolution_belong_to_what_they_gate(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("mixed")
    groups = {group.name: group for group in find_groups(model, batch).groups}
    assert groups["left"].producers == ("left", "excite")
    assert groups["left"].members == ("depthwise",)
    assert groups["right"].consumers == (Consumer("merge", 6, 1),)


def test_consumers_of_a_concatenation_are_kept_from_signals_that_know_no_offset(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("mixed")
    widths = consumer_widths(model, find_groups(model, batch))
    assert widths["left"] == {"squeeze": 6}
    assert widths["right"] == {}
    assert widths["up"] == {"head": 5}


def test_a_transformer_has_its_stream_its_heads_and_its_perceptron(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("transformer")
    found = find_groups(model, batch)
    kinds = [(group.name, group.kind) for group in found.groups]
    assert kinds == [("embedding", "units"), ("q", "heads"), ("mlp_in", "units")]
    assert [each.name for each in found.left_alone] == ["unembed"]


class HiddenHeads(nn.Module):
    """An attention whose number of heads is written out in the code, where nobody can change it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, x_btd: Tensor) -> Tensor:
        x_btd = self.embed(x_btd)
        q, k, v = (layer(x_btd).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.head(x_btd + self.o(mixed.transpose(1, 2).flatten(2)))


def test_heads_that_cannot_go_are_left_whole_and_named() -> None:
    found = find_groups(HiddenHeads(), torch.randn(2, 3, 5))
    assert [group.name for group in found.groups] == ["embed"]
    why = {each.name: each.reason for each in found.left_alone}
    assert "does not run without some of its units" in why["q"]


def test_a_stream_under_a_layer_norm_is_cut_with_the_norm(zoo: SimpleNamespace) -> None:
    found = find_groups(zoo.Transformer(norm=True), zoo.tokens(length=3))
    assert [group.name for group in found.groups] == ["embedding", "q", "mlp_in"]
    assert found.groups[0].members == ("norm",)


def test_nothing_protects_the_head_but_we_do(zoo: SimpleNamespace) -> None:
    for name, head in (("cnn", "head"), ("mlp", "4"), ("transformer", "unembed")):
        assert reasons(*zoo.case(name))[head] == "it is the model's output"


def test_a_frozen_stem_is_not_invisible(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("cnn")
    expected = find_groups(model, batch)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():
        assert find_groups(model, batch) == expected
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_model_keeps_its_mode_weights_and_statistics(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("residual")
    model.blocks[1].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    find_groups(model, batch)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_zero_initialised_branch_does_not_hide_a_group(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("residual")
    nn.init.zeros_(model.blocks[0].bn2.weight)
    assert len(find_groups(model, batch).groups) == 5


def test_a_model_that_casts_to_half_precision_by_itself_is_refused_in_words() -> None:
    class Casting(nn.Sequential):
        def forward(self, x_nf: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self[1](self[0](x_nf).bfloat16())
            return hidden.float()

    model = Casting(nn.Linear(5, 8), nn.Linear(8, 3).bfloat16())
    with pytest.raises(PruneError, match=r"does not run in single precision .*same dtype.*train\.precision"):
        find_groups(model, torch.randn(4, 5))


def test_weights_in_half_precision_are_surveyed_like_others(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("mlp")
    assert find_groups(model.bfloat16(), batch.bfloat16()) == find_groups(model.float(), batch)


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (nn.LocalResponseNorm(3, alpha=1.0), "more than its consumers depend on it"),
        (nn.Softmax(dim=1), "more than its consumers depend on it"),
        (nn.PixelShuffle(1), ""),
    ],
)
def test_what_works_on_all_units_at_once_keeps_them_whole(middle: nn.Module, reason: str) -> None:
    found = reasons(Wrapped(middle), torch.randn(2, 2, 6, 6))
    assert found.get("stem", "").startswith(reason) if reason else "stem" not in found


def test_a_parametrised_weight_is_left_alone() -> None:
    model = Wrapped(parametrizations.weight_norm(nn.Conv2d(6, 6, 3, padding=1)))
    assert "parametrised" in reasons(model, torch.randn(2, 2, 6, 6))["stem"]


def test_a_model_that_masks_hold_is_refused_with_the_way_out() -> None:
    model = Wrapped(nn.Conv2d(6, 6, 3, padding=1))
    prune.l1_unstructured(model.middle, "weight", 0.5)
    with pytest.raises(PruneError, match=r"cannot be copied .*torch\.nn\.utils\.prune\.remove"):
        find_groups(model, torch.randn(2, 2, 6, 6))


def test_a_layer_with_a_buffer_of_its_own_is_left_alone() -> None:
    model = Wrapped(nn.Conv2d(6, 6, 3, padding=1))
    model.middle.register_buffer("scale", torch.ones(6))
    assert "holds a tensor of its own, 'scale'" in reasons(model, torch.randn(2, 2, 6, 6))["stem"]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(5, 6)
        self.cell = nn.LSTM(6, 4, batch_first=True)
        self.wide = nn.Linear(4, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x_btd: Tensor) -> Tensor:
        answer, _ = self.cell(functional.relu(self.inp(x_btd)))
        return self.head(functional.relu(self.wide(answer[:, -1])))


def test_a_recurrent_layer_is_left_whole_and_the_rest_is_cut() -> None:
    found = find_groups(Recurrent(), torch.randn(2, 4, 5))
    assert [group.name for group in found.groups] == ["wide"]
    assert "nn.LSTM cannot be cut" in {each.name: each.reason for each in found.left_alone}["inp"]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.up = nn.Linear(6, 9)
        self.down = nn.Linear(9, 6)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens_bt: Tensor) -> Tensor:
        x_btd = self.embedding(tokens_bt)
        return self.head(x_btd + self.down(functional.relu(self.up(x_btd))))


def test_tied_weights_stay_tied() -> None:
    found = find_groups(Tied(), torch.tensor([[0, 1], [2, 3]]))
    assert [group.name for group in found.groups] == ["up"]
    stream = next(each for each in found.left_alone if each.name == "embedding")
    assert stream.reason == "the weight of embedding is also that of head"


def test_patterns_spare_layers_and_all_that_lies_in_a_container(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("residual")
    found = find_groups(model, batch, ("blocks.2", "stem"))
    assert [group.name for group in found.groups] == ["blocks.0.conv1", "blocks.1.conv1"]
    why = {each.name: each.reason for each in found.left_alone}
    assert why["blocks.1.conv2"] == "left alone as asked by 'blocks.2'"


def test_a_pattern_that_matches_nothing_is_a_fault_with_the_nearest_name(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("cnn")
    with pytest.raises(PruneError, match=r"'hed' matches no module of the model \(did you mean 'head'\?\)"):
        find_groups(model, batch, ("hed",))


def test_the_trace_itself_leaves_the_model_as_it_was(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("cnn")
    found = trace_couplings(model, batch)
    assert [each.root for each in found] == ["body.0", "body.3", "head"]
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
