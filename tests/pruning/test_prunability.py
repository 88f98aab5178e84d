"""What of a model can be pruned, what is left alone and why, and what signals and targets get of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from tests.pruning import nets_structure as zoo
from tests.pruning.helpers import groups_of, halved, reasons
from tests.pruning.nets_structure import Tied
from tests.unchanged import unchanged
from tpsprune import pruning
from tpsprune.errors import PruneError
from tpsprune.models.architectures import TokenMlp
from tpsprune.numerics.moments import unit_rows
from tpsprune.pruning import Consumer, check_target, consumer_blocks, consumer_widths, find_groups
from tpsprune.pruning.groups import Slice
from tpsprune.pruning.prunability import find_and_price_groups
from tpsprune.recipe.prune import Latency, Macs, Params, Prune, Tolerance, Widths

SEQUENCES = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(0))


class Wrapped(nn.Module):
    """A stem, something in the middle, a head."""

    def __init__(self, middle: nn.Module, width: int = 6, out: int | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, width, 3, padding=1)
        self.middle = middle
        self.head = nn.Conv2d(out or width, 3, 1)

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.head(functional.relu(self.middle(functional.relu(self.stem(x_bchw)))))


class Recurrent(nn.Module):
    """Two layers that no pruning changes, an LSTM and what it reads, before one that can be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle = nn.Linear(5, 8), nn.LSTM(8, 8, batch_first=True)
        self.hidden, self.head = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x_btc: Tensor) -> Tensor:
        return self.head(functional.relu(self.hidden(self.middle(self.stem(x_btc))[0])))


@pytest.mark.parametrize("target", [Macs(0.1), Params(0.1)])
def test_a_target_out_of_reach_names_the_layers_that_hold_it_up_with_the_reason(
    target: Macs | Params,
) -> None:
    words = r"lie in layers that cannot be pruned: middle \d\d% \(nn\.LSTM cannot be pruned\), stem \d% \("
    with pytest.raises(PruneError, match=words):
        check_target(Recurrent(), SEQUENCES, Prune(target=target))
    with pytest.raises(PruneError, match=words):
        pruning.extract(Recurrent(), [SEQUENCES], Prune(target=target))


def test_a_group_is_named_after_its_first_producer_and_knows_its_consumers() -> None:
    first, second = find_groups(*zoo.case("cnn")).groups
    assert (first.name, first.width) == ("body.0", 6)
    assert (first.producers, first.members) == (("body.0",), ("body.1",))
    assert first.consumers == (Consumer("body.3", 0, 1),)
    assert second.consumers == (Consumer("head", 0, 9, positions=9),)


def test_a_residual_stream_is_one_group_of_all_that_write_into_it() -> None:
    groups = groups_of(*zoo.case("residual"))
    stream = groups["blocks.1.conv2"]
    assert stream.producers == ("blocks.1.conv2", "blocks.1.shortcut", "blocks.2.conv2")
    assert [each.module for each in stream.consumers] == ["blocks.2.conv1", "head"]
    assert len(groups) == 5


def test_a_gate_and_a_depthwise_convolution_belong_to_what_they_gate() -> None:
    groups = groups_of(*zoo.case("mixed"))
    assert groups["left"].producers == ("left", "excite")
    assert groups["left"].members == ("depthwise",)
    assert groups["right"].consumers == (Consumer("merge", 6, 1),)


def test_a_transformer_has_its_stream_its_heads_and_its_perceptron() -> None:
    model, batch = zoo.case("transformer")
    found = find_groups(model, batch)
    kinds = [(group.name, group.kind) for group in found.groups]
    assert kinds == [("embedding", "units"), ("q", "heads"), ("mlp_in", "units")]
    assert [each.name for each in found.unpruned] == ["unembed"]
    # The heads of one model do not determine those of the next.
    find_groups(zoo.Transformer(heads=4), batch)
    assert find_groups(model, batch) == found
    assert (model.heads, model.q.out_features) == (2, 8)
    normed = find_groups(zoo.Transformer(norm=True), batch).groups
    assert [group.name for group in normed] == ["embedding", "q", "mlp_in"]
    assert normed[0].members == ("norm",)


def test_nothing_protects_the_head_but_we_do() -> None:
    for name, head in (("cnn", "head"), ("mlp", "4"), ("transformer", "unembed")):
        assert reasons(*zoo.case(name))[head] == "it is the model's output"


def test_frozen_layers_other_number_types_and_tensor_classes_change_nothing() -> None:
    class Marked(Tensor):
        """A tensor of somebody's own class, as data loaders hand out."""

    model, batch = zoo.case("cnn")
    expected = find_groups(model, batch)
    assert find_groups(model, batch.as_subclass(Marked)) == expected
    assert find_groups(copy.deepcopy(model).bfloat16(), batch.bfloat16()) == expected
    model.requires_grad_(False)
    with torch.no_grad():
        assert find_groups(model, batch) == expected
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_model_keeps_its_modes_weights_and_statistics() -> None:
    model, batch = zoo.case("residual")
    model.blocks[1].eval()
    with unchanged(model):
        find_groups(model, batch)


@pytest.mark.parametrize("layer", ["stem", "blocks.0.bn2"])
def test_weights_that_are_zero_do_not_hide_a_group(layer: str) -> None:
    model, batch = zoo.case("residual")
    nn.init.zeros_(model.get_submodule(layer).weight)
    assert len(find_groups(model, batch).groups) == 5


def test_a_model_that_casts_to_half_precision_by_itself_is_refused_with_the_remedy() -> None:
    class Casting(nn.Sequential):
        def forward(self, x_nf: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self[1](self[0](x_nf).bfloat16())
            return hidden.float()

    model = Casting(nn.Linear(5, 8), nn.Linear(8, 3).bfloat16())
    with pytest.raises(PruneError, match=r"does not run in single precision .*same dtype.*train\.precision"):
        find_groups(model, torch.randn(4, 5))


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (nn.LocalResponseNorm(3, alpha=1.0), "more than its consumers depend on it"),
        (nn.Softmax(dim=1), "more than its consumers depend on it"),
        (nn.PixelShuffle(1), ""),
    ],
)
def test_what_works_on_all_units_at_once_keeps_them_whole(middle: nn.Module, reason: str) -> None:
    found = reasons(Wrapped(middle), IMAGES)
    assert found.get("stem", "").startswith(reason) if reason else "stem" not in found


def test_a_model_that_masks_hold_is_refused_with_the_way_out() -> None:
    model = Wrapped(nn.Conv2d(6, 6, 3, padding=1))
    prune.l1_unstructured(model.middle, "weight", 0.5)
    with pytest.raises(PruneError, match=r"cannot be copied .*torch\.nn\.utils\.prune\.remove"):
        find_groups(model, IMAGES)


def test_a_layer_with_a_buffer_of_its_own_is_left_alone() -> None:
    model = Wrapped(nn.Conv2d(6, 6, 3, padding=1))
    model.middle.register_buffer("scale", torch.ones(6))
    assert "holds a tensor of its own, 'scale'" in reasons(model, IMAGES)["stem"]


class Around(nn.Module):
    """A linear layer on each side of something, and a wide one behind that can be pruned whatever that is."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.before = nn.Linear(5, 6)
        self.middle = middle
        self.wide, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x_btd: Tensor) -> Tensor:
        output = self.middle(functional.relu(self.before(x_btd)))
        output = output[0] if isinstance(output, tuple) else output
        return self.head(functional.relu(self.wide(output)))


class HoldsBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Detached(nn.Module):
    """A branch that autograd does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.aside = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.aside(x.detach()).detach()


class RawMatrix(nn.Module):
    """A matrix that no layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.raw


@pytest.mark.parametrize(
    ("middle", "layer", "reason"),
    [
        (nn.LSTM(6, 6, batch_first=True), "before", "nn.LSTM cannot be pruned"),
        (nn.GRU(6, 6, batch_first=True), "middle", "nn.GRU cannot be pruned"),
        (parametrizations.weight_norm(nn.Linear(6, 6)), "before", "parametrised"),
        (HoldsBuffer(), "before", "does not run without some of its units"),
        (Detached(), "before", "does not run without some of its units"),
        (Detached(), "middle.aside", "the trace from the output did not reach it"),
        (RawMatrix(), "before", "does not run without some of its units"),
    ],
)
def test_what_cannot_be_pruned_safely_is_left_alone_and_the_rest_is_pruned(
    middle: nn.Module, layer: str, reason: str
) -> None:
    model = Around(copy.deepcopy(middle))
    why = reasons(model, SEQUENCES)
    assert reason in why[layer]
    ticket, names = halved(model, SEQUENCES)
    assert names == ["wide"]
    assert ticket(SEQUENCES).shape == (2, 4, 3)


def test_tied_weights_remain_tied() -> None:
    model, batch = Tied(), torch.tensor([[0, 1], [2, 3]])
    ticket, names = halved(model, batch)
    assert names == ["up"]
    assert ticket.head.weight is ticket.embedding.weight
    assert sum(p.numel() for p in ticket.parameters()) < sum(p.numel() for p in model.parameters())
    assert reasons(model, batch)["embedding"] == "the weight of embedding is also that of head"


def test_patterns_exclude_layers_and_all_that_lies_in_a_container() -> None:
    model, batch = zoo.case("residual")
    found = find_groups(model, batch, ("blocks.2", "stem"))
    assert [group.name for group in found.groups] == ["blocks.0.conv1", "blocks.1.conv1"]
    why = {each.name: each.reason for each in found.unpruned}
    assert why["blocks.1.conv2"] == "excluded by 'blocks.2'"
    with pytest.raises(PruneError, match=r"'stm' matches no module of the model \(did you mean 'stem'\?\)"):
        find_groups(model, batch, ("stm",))


class Output(nn.Module):
    """A matrix makes the output of the stem, or a head of the stem scaled, or it is the stem under a norm."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem, self.up, self.down = nn.Linear(5, 6), nn.Linear(6, 9), nn.Linear(9, 6)
        self.raw, self.scale = nn.Parameter(torch.randn(6, 3)), nn.Parameter(torch.ones(6))
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x_bd: Tensor) -> Tensor:
        x_bd = self.stem(x_bd)
        if self.kind == "matrix":
            return functional.relu(x_bd) @ self.raw
        if self.kind == "scaled":
            return self.head(x_bd * self.scale)
        return self.norm(x_bd + self.down(functional.relu(self.up(x_bd))))


@pytest.mark.parametrize("kind", ["matrix", "stream"])
def test_a_stream_that_comes_out_is_the_output(kind: str) -> None:
    assert reasons(Output(kind), zoo.vectors())["stem"] == "it is the model's output"


def test_a_parameter_that_no_layer_holds_is_pruned_with_its_units() -> None:
    assert Slice("scale", 0, 0, 1) in groups_of(Output("scaled"), zoo.vectors())["stem"].slices


def test_a_flatten_the_trace_misreads_is_read_place_by_place() -> None:
    """Tokens side by side: the flatten puts unit u at u and at width + u, which the trace takes for 2u."""
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
    (group,) = find_groups(model, torch.randn(3, 2, 5)).groups
    assert group.consumers == (Consumer("3", 0, 1, repeat=2, stride=6),)


class Net(nn.Module):
    """A residual stream that two convolutions write, and a layer whose weights lie the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.back = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.up, self.head = nn.ConvTranspose2d(4, 5, 2), nn.Conv2d(5, 3, 1)

    def forward(self, x_bchw: Tensor) -> Tensor:
        x_bchw = torch.relu(self.norm(self.stem(x_bchw)))
        x_bchw = x_bchw + self.back(torch.relu(self.inner(x_bchw)))
        output: Tensor = self.head(torch.relu(self.up(x_bchw)))
        return output


def test_signals_get_all_that_is_written_into_a_unit_and_the_scale_of_its_batch_norm() -> None:
    model = Net()
    found = pruning.tensors_by_group(model, find_groups(model, torch.randn(2, 2, 5, 5)))
    assert list(found.written) == list(found.consumers) == ["stem", "inner", "up"]
    stream_ud = unit_rows(model, found.written["stem"])
    expected = [model.stem.weight.flatten(1), model.stem.bias[:, None], model.back.weight.flatten(1)]
    assert sorted(stream_ud[1].tolist()) == sorted(torch.cat(expected, 1)[1].tolist())
    up_ud = unit_rows(model, found.written["up"])
    expected = [model.up.weight.transpose(0, 1).flatten(1), model.up.bias[:, None]]
    assert sorted(up_ud[2].tolist()) == sorted(torch.cat(expected, 1)[2].tolist())
    assert torch.equal(unit_rows(model, found.scaled["stem"])[:, 0], model.norm.weight)
    assert found.scaled["inner"] == found.scaled["up"] == ()


class Mixing(nn.Module):
    """Layers that read the units of a group and what is no group: inputs, and rows of an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mixed = nn.Linear(3, 6), nn.Linear(6 + 3, 5)
        self.rows, self.head = nn.Embedding(4, 2), nn.Linear(5 + 2, 3)

    def forward(self, x_bd: Tensor, ids_b: Tensor) -> Tensor:
        read_bd = torch.relu(self.mixed(torch.cat([torch.relu(self.first(x_bd)), x_bd], 1)))
        output: Tensor = self.head(torch.cat([self.rows(ids_b) + 1.0, read_bd], 1))
        return output


def test_layers_that_read_more_than_a_group_are_kept_from_signals_that_know_no_offset() -> None:
    model, batch = Mixing(), (torch.randn(4, 3), torch.tensor([0, 1, 2, 3]))
    assert consumer_widths(model, find_groups(model, batch)) == {"first": {}, "mixed": {}, "rows": {}}
    model, batch = zoo.case("mixed")
    widths = consumer_widths(model, find_groups(model, batch))
    assert (widths["left"], widths["right"], widths["up"]) == ({"squeeze": 6}, {}, {"head": 5})


def test_signals_are_told_of_units_that_stand_in_an_input_several_times_over() -> None:
    tokens = TokenMlp(7, 2, 6, (8,), 3)
    found = find_groups(tokens, torch.zeros(2, 2, dtype=torch.long))
    assert consumer_widths(tokens, found)["embedding"] == {"hidden.0": 6}
    assert consumer_blocks(found) == {"hidden.0": 1}
    flattened = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Linear(5 * 16, 3))
    assert consumer_blocks(find_groups(flattened, IMAGES)) == {}


BATCH, PERCEPTRON = torch.randn(4, 8), zoo.mlp((8, 32, 32, 3))


def test_a_target_within_reach_returns_what_can_be_pruned_and_what_it_costs() -> None:
    found, count = check_target(PERCEPTRON, BATCH, Prune(target=Macs(0.5)))
    assert [group.width for group in found.groups] == [32, 32]
    assert count.total == 8 * 32 + 32 * 32 + 32 * 3


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        (Macs, (8 * 8 + 8 * 8 + 8 * 3) / (8 * 32 + 32 * 32 + 32 * 3)),
        (Params, (9 * 8 + 9 * 8 + 9 * 3) / (9 * 32 + 33 * 32 + 33 * 3)),
    ],
)
def test_a_target_out_of_reach_is_refused_with_the_least_there_is(kind: Any, least: float) -> None:
    assert check_target(PERCEPTRON, BATCH, Prune(target=kind(least + 1e-4), max_pruning_ratio=0.75))
    words = rf"prune.target {kind.__name__.lower()}=0.05 .* the least is {least + 5e-4:.3f}"  # rounded up
    with pytest.raises(PruneError, match=words):
        check_target(PERCEPTRON, BATCH, Prune(target=kind(0.05), max_pruning_ratio=0.75))


def test_the_cost_is_in_the_unit_of_the_target_and_foresees_biases_of_compensation() -> None:
    model = nn.Sequential(nn.Linear(8, 32, bias=False), nn.ReLU(), nn.Linear(32, 3, bias=False))
    macs = find_and_price_groups(model, BATCH, Prune(target=Macs(0.5)))[2]
    with_biases = find_and_price_groups(model, BATCH, Prune(target=Params(0.5)))[2]
    without = find_and_price_groups(model, BATCH, Prune(target=Params(0.5), compensate=False))[2]
    assert macs.total == with_biases.total == without.total == 11 * 32
    assert with_biases.at((10,)) == without.at((10,)) + 3 == 113


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Prune(target=Widths({"0": 33})), r"prune.target.widths:\n  '0' can keep 1 to 32 units \(found 33\)"),
        (Prune(target=Widths({"head": 3})), r"'head' is no group that can be pruned; groups are 0, 2"),
        (Prune(max_pruning_ratios={"q*": 0.5}), r"max_pruning_ratios: 'q\*' matches no group"),
        (Prune(ignored_layers=("q*",)), r"q\*"),
    ],
)
def test_names_that_are_not_there_are_refused_before_any_training(settings: Prune, message: str) -> None:
    with pytest.raises(PruneError, match=message):
        check_target(PERCEPTRON, BATCH, settings)


@pytest.mark.parametrize("target", [Latency(0.01), Tolerance(0.5), Widths({"2": 1})])
def test_what_only_data_or_a_clock_can_tell_is_not_refused(target: Any) -> None:
    assert check_target(PERCEPTRON, BATCH, Prune(target=target))


def test_heads_of_packed_attention_are_found_without_changing_the_model() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Linear(8, 8), layer, nn.Linear(8, 3))
    found, _ = check_target(model, torch.randn(4, 5, 8), Prune())
    assert "heads" in {group.kind for group in found.groups}
    assert isinstance(model[1].self_attn, nn.MultiheadAttention)


def test_a_model_with_nothing_to_prune_is_refused_with_the_reasons() -> None:
    with pytest.raises(PruneError, match=r"holds nothing that can be pruned\n  0: it is the model's output"):
        check_target(nn.Sequential(nn.Linear(8, 3)), BATCH, Prune())
