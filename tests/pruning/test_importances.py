"""torch-pruning's score_units on our groups: the same units are pruned as by that library itself."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional

from tests.pruning import nets_structure as zoo
from tpsprune.errors import PruneError
from tpsprune.pruning.groups import Consumer, Group, Prunability, Slice
from tpsprune.pruning.importances import KINDS, highest, score_units
from tpsprune.pruning.prunability import find_groups

THEIRS = {
    "magnitude": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=1),
    "group-norm": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=2),
    "taylor": torch_pruning.importance.GroupTaylorImportance,
    "bn-scale": torch_pruning.importance.BNScaleImportance,
    "lamp": torch_pruning.importance.LAMPImportance,
    "fpgm": torch_pruning.importance.FPGMImportance,
}


def scaled(model: nn.Module) -> nn.Module:
    """Batch norms with scales of their own, so that no score is a tie."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return model.eval()


def cnn_case() -> tuple[nn.Module, Tensor, Prunability]:
    model, batch = zoo.case("cnn")
    return scaled(model), batch, find_groups(model, batch, ())


def classes(batch: Tensor) -> Tensor:
    return torch.arange(len(batch)) % 3


@pytest.mark.parametrize("kind", sorted(THEIRS))
@pytest.mark.parametrize("case", ["cnn", "residual"])
def test_the_same_units_are_pruned_as_by_torch_pruning_itself(kind: str, case: str) -> None:
    model, batch = zoo.case(case)
    scaled(model)
    found = find_groups(model, batch, ())
    ours = score_units(model, [batch], found.groups, kind, labels=[classes(batch)])

    theirs = copy.deepcopy(model)
    functional.cross_entropy(theirs(batch), classes(batch)).backward()
    pruner = torch_pruning.pruner.BasePruner(
        theirs,
        batch,
        importance=THEIRS[kind](),
        pruning_ratio=0.5,
        ignored_layers=[theirs.head],
        in_channel_groups={},
        out_channel_groups={},
    )
    pruner.step()
    pruned = {name: set(units) for name, out, units in pruner.pruning_history() if out}
    assert pruned
    for group in found.groups:
        recorded = [pruned[name] for name in group.producers if name in pruned]
        kept = set(highest(ours[group.name], group.width // 2))
        assert set(range(group.width)) - kept in recorded, group.name


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"lamp", "random"}))
def test_scores_are_over_their_mean_and_finite(kind: str) -> None:
    model, batch, found = cnn_case()
    scores = score_units(model, [batch], found.groups, kind, labels=[classes(batch)])
    for group in found.groups:
        assert scores[group.name].shape == (group.width,)
        assert float(scores[group.name].mean()) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", sorted(THEIRS))
def test_permuting_the_units_permutes_the_scores(kind: str) -> None:
    model, batch, found = cnn_case()
    before = score_units(model, [batch], found.groups, kind, labels=[classes(batch)])[found.groups[0].name]
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(model.body[1], name).copy_(getattr(model.body[1], name)[order])
        model.body[0].weight.copy_(model.body[0].weight[order])
        model.body[3].weight.copy_(model.body[3].weight[:, order])
    after = score_units(model, [batch], found.groups, kind, labels=[classes(batch)])[found.groups[0].name]
    torch.testing.assert_close(after, before[order], rtol=1e-5, atol=1e-6)


def test_a_head_is_scored_by_its_share_of_all_four_projections() -> None:
    model, batch = zoo.case("transformer")
    width, heads = 8, 2
    group = Group(
        "heads",
        heads,
        ("q", "k", "v"),
        (),
        (Consumer("o", 0, width // heads),),
        tuple(Slice(f"{name}.weight", int(name == "o"), 0, width // heads) for name in "qkvo"),
        kind="heads",
    )
    scores = score_units(model, [batch], [group], "magnitude")["heads"]
    by_hand = torch.stack(
        [
            sum(getattr(model, name).weight.abs().sum(1)[4 * head : 4 * head + 4].sum() for name in "qkv")
            + model.o.weight.abs().sum(0)[4 * head : 4 * head + 4].sum()
            for head in range(heads)
        ]
    )
    torch.testing.assert_close(scores, by_hand / by_hand.mean())


def test_taylor_adds_up_over_batches_of_unequal_length() -> None:
    model, batch, found = cnn_case()
    whole = score_units(model, [batch], found.groups, "taylor", labels=[classes(batch)])
    labels = [classes(batch)[:7], classes(batch)[7:]]
    parts = score_units(model, [batch[:7], batch[7:]], found.groups, "taylor", labels=labels)
    for name, scores in whole.items():
        torch.testing.assert_close(parts[name], scores, rtol=1e-3, atol=1e-4)


def test_taylor_sees_frozen_layers_and_leaves_the_model_as_it_was() -> None:
    model, batch, found = cnn_case()
    free = score_units(model, [batch], found.groups, "taylor", labels=[classes(batch)])
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.train()
    frozen = score_units(model, [batch], found.groups, "taylor", labels=[classes(batch)])
    assert all(torch.equal(frozen[name], free[name]) for name in free)
    assert model.training
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_random_scores_come_from_the_seed_alone() -> None:
    model, batch, found = cnn_case()
    state = torch.get_rng_state()
    first, again, other = (
        score_units(model, [batch], found.groups, "random", seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_trap_6_a_weak_layer_is_scored_on_its_own_scale() -> None:
    # There a layer whose units were all below the threshold was passed over without a word.
    model, batch, found = cnn_case()
    before = score_units(model, [batch], found.groups, "magnitude")
    with torch.no_grad():
        for module in (*model.body[:2], model.body[3]):
            module.weight.mul_(1e-6)
    after = score_units(model, [batch], found.groups, "magnitude")
    first = found.groups[0].name
    torch.testing.assert_close(after[first], before[first])


@pytest.mark.parametrize("kind", sorted(THEIRS))
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_trap_17_equal_units_have_equal_scores_and_no_nan(kind: str, value: float) -> None:
    model, batch, found = cnn_case()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    scores = score_units(model, [batch], found.groups, kind, labels=[classes(batch)])
    for scores_n in scores.values():
        assert bool(scores_n.isfinite().all())
        # Only lamp ranks what is equal: each over the sum of those that come after it in the order.
        assert kind == "lamp" or float(scores_n.max() - scores_n.min()) < 1e-6


def test_trap_5_ties_select_the_wanted_count_and_the_lowest_units() -> None:
    # There a threshold with <= took every unit of a fresh batch norm, and then none was pruned at all.
    assert highest(torch.ones(7), 3) == (0, 1, 2)
    assert highest(torch.tensor([0.0, 0.0, 2.0, 0.0, 1.0]), 3) == (2, 4, 0)
    model, batch = zoo.case("cnn")
    groups = find_groups(model, batch, ()).groups
    scores = score_units(model, [batch], groups, "bn-scale")
    assert [len(highest(scores[group.name], group.width // 2)) for group in groups] == [3, 4]


def test_trap_17_a_batch_norm_without_scales_counts_for_nothing() -> None:
    model, batch = zoo.case("cnn")
    model.body[1] = nn.BatchNorm2d(6, affine=False)
    found = find_groups(model, batch, ())
    for kind in ("magnitude", "group-norm", "fpgm", "lamp", "taylor", "synflow"):
        scores = score_units(model, [batch], found.groups, kind, labels=[classes(batch)])
        assert all(bool(each.isfinite().all()) for each in scores.values())
    with pytest.raises(PruneError, match="no batch norm with a scale"):
        score_units(model, [batch], found.groups, "bn-scale")


def only_embeddings(groups: tuple[Group, ...]) -> list[Group]:
    return [dataclasses.replace(groups[0], consumers=(), slices=(Slice("embedding.weight", 1, 0, 1),))]


@pytest.mark.parametrize(
    ("case", "kind", "batches", "message"),
    [
        ("cnn", "taylor", 1, "'taylor' needs the labels of the calibration data"),
        ("cnn", "taylor with labels", 2, "1 label tensors for 2 calibration batches"),
        ("cnn", "magnitud", 1, "did you mean 'magnitude'"),
        ("cnn", "obdc", 1, "'obdc' is no importance"),  # It breaks on networks without attention.
        # There a group without what is scored was passed over in silence and left whole.
        ("mlp", "bn-scale", 1, "group '0' holds no batch norm with a scale"),
        ("token-mlp", "magnitude", 1, "nothing that this formula can score"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(case, kind, batches, message) -> None:
    model, batch = zoo.case(case)
    groups = find_groups(model, batch, ()).groups
    groups = only_embeddings(groups) if case == "token-mlp" else groups
    kind, labelled, _ = kind.partition(" with labels")
    labels = [classes(batch)] if labelled else None
    with pytest.raises(PruneError, match=message):
        score_units(model, [batch] * batches, groups, kind, labels=labels)


def test_synflow_is_what_flows_through_a_unit_in_closed_form_and_reads_no_data() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10, bias=False), nn.ReLU(), nn.Linear(10, 4, bias=False))
    found = find_groups(model, torch.randn(8, 6), ())
    (scores,) = score_units(model, [torch.full((3, 6), torch.nan)], found.groups, "synflow").values()
    flow = model[0].weight.abs().sum(1) * model[2].weight.abs().sum(0)
    assert torch.allclose(scores, flow / flow.mean(), rtol=1e-5)
    # A unit made twice as strong and read half as strongly lets as much through.
    with torch.no_grad():
        model[0].weight[3] *= -2
        model[2].weight[:, 3] /= 2
    (again,) = score_units(model, [torch.zeros(1, 6)], found.groups, "synflow").values()
    assert torch.allclose(scores, again, rtol=1e-5)


def test_synflow_of_tokens_takes_the_ids_as_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 6), nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3))
    tokens = torch.randint(7, (8, 2))
    found = find_groups(model, tokens, ())
    scores = score_units(model, [tokens], found.groups, "synflow")
    assert all(bool(each.isfinite().all()) and bool(each.any()) for each in scores.values())


def test_synflow_of_a_deep_net_does_not_overflow_and_what_is_not_finite_is_refused() -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(40) for layer in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(64, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    found = find_groups(model, torch.randn(4, 64), ())
    scores = score_units(model, [torch.zeros(1, 64)], found.groups, "synflow")
    assert all(bool(each.isfinite().all()) and len(each.unique()) > 60 for each in scores.values())
    model[0].weight.data[0, 0] = torch.inf
    with pytest.raises(PruneError, match="are not finite"):
        score_units(model, [torch.zeros(1, 64)], found.groups, "synflow")
