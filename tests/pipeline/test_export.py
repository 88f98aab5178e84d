"""A ticket leaves its run: whole, equal, or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tpsprune
from tests.export.bundles import restamp, write_first_version
from tests.pipeline.conftest import Small, folder_of, harmful_model, make_small, outcome_of
from tests.pipeline.test_train import run
from tpsprune import pipeline, pruning, recipe
from tpsprune.errors import ArtifactError, RunFolderError
from tpsprune.pipeline.workbench import set_up
from tpsprune.recipe import dumps
from tpsprune.recipe.prune import Macs
from tpsprune.recipe.within import read_within
from tpsprune.records import Exported, Exporting, Grid, dump
from tpsprune.runs import RunFolder, read_json, read_result, read_text, write_result
from tpsprune.runs.tensors import load_tensors, save_tensors

export_file = import_module("tpsprune.pipeline.export")
load_file = import_module("tpsprune.pipeline.load")
BUNDLE = ("README.md", "manifest.json", "plan.json", "recipe.toml", "ticket.safetensors")


@pytest.fixture(scope="module")
def bundle(trained: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Exported, Path]:
    target = tmp_path_factory.mktemp("bundle") / "ticket"
    return pipeline.export(trained.path, target), target


@pytest.fixture
def own_bundle(bundle: tuple[Exported, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle[1], tmp_path / "ticket"))


def test_an_exported_ticket_loads_without_its_run_infers_equally_and_can_be_trained_on(
    small: Small, trained: RunFolder, bundle: tuple[Exported, Path]
) -> None:
    exported, folder = bundle
    assert exported.files == BUNDLE
    raw = json.loads(json.dumps(dump(exported)))
    assert raw["schema"] == "tpsprune.exported/1"
    assert list(raw["files"]) == list(BUNDLE)
    assert raw["compared"][0]["largest_difference"] == exported.largest_difference == 0.0
    state = torch.get_rng_state()
    ticket = tpsprune.load(folder)
    assert torch.equal(torch.get_rng_state(), state), "loading draws from nobody's dice"
    assert not ticket.training
    accuracy = read_result(trained.result).ticket.accuracy
    with set_up(small(), "cpu") as bench:
        assert bench.score(ticket, bench.dataset.test).accuracy == accuracy
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in ticket.parameters())
    before = {name: tensor.clone() for name, tensor in ticket.state_dict().items()}
    optimiser = torch.optim.SGD(ticket.parameters(), lr=0.1)
    ticket.train()(torch.randn(8, 1, 8, 8)).square().mean().backward()
    optimiser.step()
    assert any(not torch.equal(before[name], tensor) for name, tensor in ticket.state_dict().items())


def test_steps_are_yielded_as_they_begin_and_the_export_is_the_last(
    trained: RunFolder, tmp_path: Path
) -> None:
    *steps, last = pipeline.export_steps(trained.path, tmp_path / "ticket", ["safetensors", "torch-export"])
    assert [(step.format, step.doing) for step in steps if isinstance(step, Exporting)] == [
        ("safetensors", "running the ticket"),
        ("safetensors", "writing"),
        ("torch-export", "writing"),
        ("safetensors", "reloading and comparing"),
        ("torch-export", "reloading and comparing"),
    ]
    assert isinstance(last, Exported)
    assert [each.batches for each in last.compared] == [(1, 2, 7, 16)] * 2
    assert last.files == tuple(sorted(path.name for path in (tmp_path / "ticket").iterdir()))


def test_the_same_run_gives_the_same_bytes(trained: RunFolder, tmp_path: Path) -> None:
    for name in ("one", "two"):
        pipeline.export(trained.path, tmp_path / name, ["safetensors", "torch-export"])
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_an_export_left_in_the_middle_leaves_nothing(trained: RunFolder, tmp_path: Path) -> None:
    steps = pipeline.export_steps(trained.path, tmp_path / "ticket", ["safetensors", "torch-export"])
    for _ in range(4):
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []


class Shifted:
    """A format that computes as the ticket does, and a little off on batches of one size."""

    name = "safetensors"
    tolerance_share = 1e-3

    def __init__(self, items: int, shift: float) -> None:
        self.items, self.shift = items, shift

    def refuse(self, model: nn.Module) -> None:
        pass

    def write(self, folder: Path, model: nn.Module, example: Any) -> tuple[str, ...]:
        self.model = model
        (folder / "ticket.onnx").write_text("a graph")
        return ("ticket.onnx",)

    def reload(self, folder: Path) -> Callable[[Any], Tensor]:
        def predict(batch: Tensor) -> Tensor:
            with torch.inference_mode():
                scores: Tensor = self.model(batch)
            return scores + (self.shift * scores.abs().max() if len(batch) == self.items else 0.0)

        return predict


class Reshaped(Shifted):
    """A format that returns the right numbers in another shape, which would be spread over them."""

    def reload(self, folder: Path) -> Callable[[Any], Tensor]:
        within = super().reload(folder)
        return lambda batch: within(batch)[None]


class Unable(Shifted):
    """A format whose library raises, on batches of one size, an error of a kind of its own."""

    def reload(self, folder: Path) -> Callable[[Any], Tensor]:
        within = super().reload(folder)

        def predict(batch: Tensor) -> Tensor:
            if len(batch) == self.items:
                raise LookupError("no kernel\nfor this")
            return within(batch)

        return predict


DIFFERS = r"on {} random inputs the reloaded ticket differs .* nothing was"


@pytest.mark.parametrize(
    ("double", "words"),
    [
        *(
            (Shifted(items, shift), DIFFERS.format(items))
            for items in (1, 2, 7, 16)
            for shift in (2e-3, float("nan"), float("inf"))
        ),
        (Reshaped(7, 0.0), "the reloaded ticket differs from the run's by inf"),
        (Unable(7, 0.0), r"safetensors: the reloaded ticket fails on 7 random .*: no kernel for this$"),
    ],
)
def test_a_format_whose_files_infer_differently_at_any_batch_size_or_not_at_all_is_refused(
    trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, double: Shifted, words: str
) -> None:
    monkeypatch.setattr(export_file, "_ALL", (double,))
    with pytest.raises(ArtifactError, match=words):
        pipeline.export(trained.path, tmp_path / "ticket")
    assert list(tmp_path.iterdir()) == []


def test_a_difference_that_a_format_allows_passes_and_is_reported(
    trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_file, "_ALL", (Shifted(7, 0.5e-3),))
    (compared,) = pipeline.export(trained.path, tmp_path / "ticket").compared
    assert 0.4e-3 < compared.largest_difference / compared.largest_score < 0.6e-3


@pytest.mark.parametrize(
    ("formats", "words"),
    [
        (["safetensor"], r"no format 'safetensor' \(did you mean 'safetensors'\?\)"),
        (["pickle"], "no format 'pickle'.*formats: safetensors, torch-export, onnx, hf"),
        ([], "no format was requested"),
        (["hf"], "'hf' is for models of the transformers library, and the ticket is a Cnn"),
    ],
)
def test_a_format_that_cannot_be_is_refused_before_anything_is_written(
    trained: RunFolder, tmp_path: Path, formats: list[str], words: str
) -> None:
    with pytest.raises(ArtifactError, match=words):
        pipeline.export(trained.path, tmp_path / "ticket", formats)
    assert list(tmp_path.iterdir()) == []


def test_onnx_without_its_libraries_names_the_line_that_installs_them(
    trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tpsprune.export.onnx_graph.find_spec", lambda name: None if name == "onnx" else name)
    with pytest.raises(
        ArtifactError, match=r"needs onnx, not installed here: pip install 'tpsprune\[onnx\]'"
    ):
        pipeline.export(trained.path, tmp_path / "ticket", ["onnx"])
    assert list(tmp_path.iterdir()) == []


def test_the_card_has_grams_only_with_a_grid_and_never_of_a_simulated_meter(
    trained: RunFolder, tmp_path: Path
) -> None:
    pipeline.export(
        trained.path, tmp_path / "ticket", grid=Grid(grams_per_kwh=50.0, country="", year=None, source="x")
    )
    card = (tmp_path / "ticket" / "README.md").read_text()
    assert "co2_eq_emissions" not in card
    assert "CO₂: none, because the meter was simulated." in card


def copied(trained: RunFolder, to: Path) -> RunFolder:
    to.mkdir()
    for name in ("recipe.toml", "plan.json", "ticket.safetensors", "dense.safetensors", "result.json"):
        (to / name).write_bytes((trained.path / name).read_bytes())
    return RunFolder(to)


def _doubled(folder: RunFolder) -> None:
    tensors, _ = load_tensors(folder.ticket)
    save_tensors(folder.ticket, {name: each.double() for name, each in tensors.items()}, {})


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (lambda run: run.recipe.unlink(), RunFolderError, r"cannot read .*recipe.toml: No such file"),
        (lambda run: run.recipe.write_bytes(b"\xff"), RunFolderError, r"is not UTF-8 text"),
        (
            lambda run: run.ticket.write_bytes(run.dense.read_bytes()),
            ArtifactError,
            r"recipe, plan and tensors do not make one model: .*size mismatch",
        ),
        (_doubled, ArtifactError, r"is torch\.float64 where torch\.float32 is needed"),
    ],
)
def test_a_run_whose_files_do_not_make_one_model_is_not_exported(
    trained: RunFolder,
    tmp_path: Path,
    damage: Callable[[RunFolder], None],
    error: type[Exception],
    words: str,
) -> None:
    folder = copied(trained, tmp_path / "run")
    (folder.path / "state").mkdir()
    damage(folder)
    with pytest.raises(error, match=words):
        pipeline.export(folder.path, tmp_path / "ticket")
    assert not (tmp_path / "ticket").exists()


def test_an_unfinished_run_is_not_exported(small: Small, tmp_path: Path) -> None:
    events = pipeline.train(small(), tmp_path / "runs", device="cpu")
    next(events)
    events.close()  # type: ignore[attr-defined]
    (folder,) = (tmp_path / "runs").iterdir()
    with pytest.raises(RunFolderError, match=r"is not finished: go on with .*--resume"):
        pipeline.export(folder, tmp_path / "ticket")
    assert not (tmp_path / "ticket").exists()


def test_a_bundle_of_the_first_version_still_loads(trained: RunFolder, tmp_path: Path) -> None:
    tensors, _ = load_tensors(trained.ticket)
    folder = write_first_version(
        tmp_path / "old",
        held=tensors,
        plan=read_json(trained.plan),
        recipe=read_text(trained.recipe),
        facts=dump(read_result(trained.result).task),
    )
    found = tpsprune.load(folder).state_dict()
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


CUSTOM = """
from pathlib import Path
from torch import nn

def net(width=16):
    Path(__file__).with_name("called").write_text("")
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
"""


@pytest.fixture
def custom_run(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    (tmp_path / "export_nets.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = small("task.model={kind='custom', factory='export_nets:net'}")
    return folder_of(run(recipe, tmp_path / "runs"))


def test_code_that_a_bundle_names_is_called_only_when_allowed(custom_run: RunFolder, tmp_path: Path) -> None:
    exported = pipeline.export(custom_run.path, tmp_path / "ticket", trust_code=True)
    assert exported.largest_difference == 0.0
    assert exported.calls == "export_nets:net"
    (tmp_path / "called").unlink()
    with pytest.raises(ArtifactError, match=r"calling 'export_nets:net', .* load it with trust_code=True"):
        tpsprune.load(tmp_path / "ticket")
    assert not (tmp_path / "called").exists()
    state = torch.get_rng_state()
    ticket = tpsprune.load(tmp_path / "ticket", trust_code=True)
    assert torch.equal(torch.get_rng_state(), state), "loading draws from nobody's dice"
    assert (tmp_path / "called").exists()
    assert torch.equal(
        ticket(torch.ones(1, 64)), tpsprune.load(tmp_path / "ticket", trust_code=True)(torch.ones(1, 64))
    )
    assert 'tpsprune.load("FOLDER", trust_code=True)' in (tmp_path / "ticket" / "README.md").read_text()


def test_code_that_a_run_folder_names_is_called_only_when_allowed(trained: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(Path(shutil.copytree(trained.path, tmp_path / "run")))
    harm = harmful_model(tmp_path / "harm")
    run.recipe.write_text(dumps(make_small(harm)))
    words = (
        r"run: its model is built by importing 'os' and calling 'os:mkdir', .* export it with --trust-code"
    )
    with pytest.raises(ArtifactError, match=words):
        pipeline.export(run.path, tmp_path / "ticket")
    assert not (tmp_path / "harm").exists()
    with pytest.raises(ArtifactError, match="'os:mkdir' returned NoneType"):
        pipeline.export(run.path, tmp_path / "ticket", trust_code=True)
    assert (tmp_path / "harm").exists()


PICKY = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.rows, self.head = nn.Linear(64, 16), nn.Embedding(1, 16), nn.Linear(16, 10)

    def forward(self, images):
        ids = (images.flatten(1)[:, 0] > 0).long()  # never so in the data: the corner of a digit is empty
        return self.head((self.first(images.flatten(1)) + self.rows(ids)).relu())
"""


def test_a_model_that_does_not_run_on_random_inputs_is_reported(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "export_picky.py").write_text(PICKY)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = small("task.model={kind='custom', factory='export_picky:Net'}")
    finished = folder_of(run(recipe, tmp_path / "runs"))
    words = r"the ticket fails on \d+ random inputs \(floats are standard normal, .*: index out of range"
    with pytest.raises(ArtifactError, match=words):
        pipeline.export(finished.path, tmp_path / "ticket", trust_code=True)
    assert not [path.name for path in tmp_path.iterdir() if "ticket" in path.name]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("recipe.toml", b"[task", "recipe.toml"),
        ("recipe.toml", b'name = "a"\n', "recipe.toml"),
        ("recipe.toml", "task.model={kind='cnn', widths=[12, 17]}", "model: the plan is for another model"),
        # which takes no memory
        ("recipe.toml", "task.model={kind='mlp', widths=[65536, 65536, 65536]}", "do not make one model"),
        ("plan.json", b"{}", "do not make one model: this is not a plan"),
        ("plan.json", b"[]", "plan.json is no plan"),
        ("plan.json", b'{"schema": "tpsprune.plan/2"}', "do not make one model"),
    ],
)
def test_a_foreign_recipe_or_plan_under_a_good_hash_is_one_message(
    small: Small, own_bundle: Path, name: str, content: bytes | str, words: str
) -> None:
    restamp(own_bundle, name, dumps(small(content)).encode() if isinstance(content, str) else content)
    with pytest.raises(ArtifactError, match=words):
        tpsprune.load(own_bundle)


MODELS = [
    "task.model={kind='cnn', widths=[6, 8]}",
    "task.model={kind='resnet', depth=8, width=4}",
    "task.model={kind='mlp', widths=[12, 8]}",
    "task.model={kind='mlp', widths=[12, 8], gated=true}",
]


@pytest.mark.parametrize("model", MODELS)
def test_a_shell_filled_from_tensors_is_the_model_that_was_built(small: Small, model: str) -> None:
    with set_up(small(model), "cpu") as bench:
        built = bench.new_model().eval()
        found = load_file._rebuild(
            bench.recipe.task.model, "here", bench.dataset.facts, None, dict(built.state_dict())
        )
        batch = bench.watch_batches[0]
        assert torch.equal(found(batch), built(batch))
        assert [*found.state_dict()] == [*built.state_dict()]
        assert not any(each.is_meta for each in (*found.parameters(), *found.buffers()))
        assert pruning.replay(found, _nothing_cut(built))(batch).equal(built(batch))


def _nothing_cut(model: nn.Module) -> pruning.Plan:
    plan_file = import_module("tpsprune.pruning.plan")
    return pruning.Plan(target="", groups=(), new_biases=(), versions={}, model=plan_file.signature_of(model))


def test_a_run_that_was_not_timed_has_a_card_that_notes_it(trained: RunFolder, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path / "run")
    result = read_result(folder.result)
    untimed = {name: replace(getattr(result, name), latency_seconds={}) for name in ("dense", "ticket")}
    folder.result.unlink()
    write_result(folder.result, replace(result, **untimed))
    pipeline.export(folder.path, tmp_path / "ticket")
    card = (tmp_path / "ticket" / "README.md").read_text()
    assert "| latency | not recorded | not recorded | not recorded |" in card


@pytest.mark.parametrize("name", ["safetensors", "torch-export", "onnx"])
def test_the_lines_on_the_card_load_the_ticket(trained: RunFolder, tmp_path: Path, name: str) -> None:
    if name == "onnx":
        for library in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(library, reason="pip install 'tpsprune[onnx]'")
    pipeline.export(trained.path, tmp_path / "ticket", [*dict.fromkeys(["safetensors", name])])
    card = (tmp_path / "ticket" / "README.md").read_text()
    code = card.split("```python\n")[-1].split("```")[0].replace("FOLDER", str(tmp_path / "ticket"))
    scope: dict[str, Any] = {}
    exec(code, scope)  # noqa: S102 -- what a reader of the card would type
    wanted = tpsprune.load(tmp_path / "ticket")(torch.zeros(2, 1, 8, 8))
    assert torch.allclose(torch.as_tensor(scope["scores"]), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("data", "note"),
    [
        (
            "by_name",
            "several tensors, by name: ids int64 (items, 5), numbers float32 (items, 6), mask int64 (",
        ),
        (
            "by_place",
            "several tensors, by position: int64 (items, 5), float32 (items, 6), int64 (items, 5) a",
        ),
    ],
)
def test_the_lines_on_the_card_load_a_ticket_of_several_inputs(
    small: Small, tmp_path: Path, data: str, note: str
) -> None:
    formats = ["safetensors", "torch-export"]
    if all(find_spec(library) for library in ("onnx", "onnxruntime", "onnxscript")):
        formats.append("onnx")
    own = "kind='custom', factory='tests.pipeline.own_tasks"
    recipe = small(f"task.data={{{own}:{data}'}}", f"task.model={{{own}:mixed'}}")
    pipeline.export(
        folder_of(run(recipe, tmp_path / "runs")).path, tmp_path / "ticket", formats, trust_code=True
    )
    card = (tmp_path / "ticket" / "README.md").read_text()
    assert note in card
    outputs = []
    for passage in card.split("```python\n")[1:]:
        found: dict[str, Any] = {}
        exec(passage.split("```")[0].replace("FOLDER", str(tmp_path / "ticket")), found)  # noqa: S102
        outputs.append(torch.as_tensor(found["scores"]))
    assert len(outputs) == len(formats)
    assert all(torch.allclose(outputs[0], each, atol=1e-5) for each in outputs)


def test_a_ticket_of_transformers_with_a_width_for_each_layer_leaves_by_hf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="pip install 'tpsprune[transformers]'")
    place = import_module("tpsprune.pipeline.family")
    monkeypatch.setattr(place, "LATENCY_SECONDS", 0.0)
    monkeypatch.setattr(place, "INFERENCE_SECONDS", 0.01)
    config = "{hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4}"
    text = """
name = "language"
task.loss = "next-token"
train = {epochs = 1, threads = 1}
prune.calibration_items = 64
prune.quality = "fast"
prune.target.widths = {"model.layers.0.mlp.gate_proj" = 20, "model.layers.1.mlp.gate_proj" = 30}
retrain.epochs = 0
energy.meter = "none"
"""
    (tmp_path / "words.txt").write_text("the quick brown fox jumps over the lazy dog. " * 400)
    data = f"task.data = {{kind='text', path='{tmp_path / 'words.txt'}', length=16}}"
    model = f"task.model = {{kind='transformers', architecture='LlamaForCausalLM', config={config}}}"
    made = recipe.parse(f"{text}{data}\n{model}\n", "language.toml")
    outcome = outcome_of(list(pipeline.train(made, tmp_path / "runs", device="cpu")))
    exported = pipeline.export(Path(outcome.folder), tmp_path / "bundle", ["hf", "safetensors"])
    assert "modeling_pruned.py" in exported.files
    folder = Path(outcome.folder)
    uniform = recipe.parse(
        f"{text}{data}\n{model}\n", "language.toml", ["prune.target={macs=0.7}", "prune.widths='uniform'"]
    )
    sizes = [Macs(0.7), Macs(0.5)]
    list(pipeline.family(uniform, folder, sizes, tmp_path / "sizes", device="cpu"))
    plain = pipeline.export(
        tmp_path / "sizes", tmp_path / "plain", ["hf"], pick=[read_within("size<=1GB", "--pick")]
    )
    assert (plain.size, "modeling_pruned.py" in plain.files) == (0.7, False)
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert 'transformers.AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True)' in card
    assert tpsprune.load(tmp_path / "bundle").training is False
