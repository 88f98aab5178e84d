"""A ticket without a recipe goes to disk and comes back, to the bit, or is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tpsprune
from tests.export.bundles import change_manifest, restamp
from tests.pruning import nets_attention as attentions
from tests.pruning import nets_structure as zoo
from tests.unchanged import unchanged
from tpsprune.errors import ArtifactError
from tpsprune.export import read_bundle

NAMES = ["README.md", "manifest.json", "plan.json", "ticket.safetensors"]


def cnn() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(2, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, bias=False))
    return nn.Sequential(*body, nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def attention() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.TransformerEncoderLayer(16, 4, 24, 0.0, batch_first=True), nn.Linear(16, 3))


def tied() -> nn.Module:
    torch.manual_seed(0)
    return zoo.Tied()


IMAGES = torch.randn(64, 2, 6, 6, generator=torch.Generator().manual_seed(1))
NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "cnn": (cnn, IMAGES),
    "attention": (attention, torch.randn(64, 5, 16, generator=torch.Generator().manual_seed(1))),
    "scaled heads": (lambda: attentions.net("fused by part"), attentions.sequences(64)),
    "tied": (tied, zoo.tokens(64)),
}


def extracted(name: str) -> tpsprune.Extraction:
    net, batch = NETS[name]
    settings: dict[str, Any] = {"head_width": True} if name == "scaled heads" else {}
    return tpsprune.extract(net(), batch, tpsprune.Macs(0.6), **settings)


@pytest.fixture(scope="module")
def found() -> tpsprune.Extraction:
    return extracted("cnn")


@pytest.fixture
def saved(found: tpsprune.Extraction, tmp_path: Path) -> Path:
    tpsprune.save(found, tmp_path / "ticket")
    return tmp_path / "ticket"


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("built", [True, False])
def test_a_ticket_comes_back_to_the_bit_whatever_the_weights_of_the_architecture(
    name: str, built: bool, tmp_path: Path
) -> None:
    ticket, (net, batch) = extracted(name), NETS[name]
    tpsprune.save(ticket, str(tmp_path / "deep" / "ticket"))
    other = net().train()
    for parameter in other.parameters():
        nn.init.ones_(parameter)
    state = torch.get_rng_state()
    with unchanged(other):
        again = tpsprune.load(str(tmp_path / "deep" / "ticket"), model=net if built else other)
    assert torch.equal(torch.get_rng_state(), state)
    assert not again.training
    held = ticket.ticket.state_dict()
    assert again.state_dict().keys() == held.keys()
    assert all(torch.equal(tensor, held[name]) for name, tensor in again.state_dict().items())
    with torch.no_grad():
        assert torch.equal(again(batch), ticket.ticket.eval()(batch))
    if name == "tied":
        assert again.get_submodule("head").weight is again.get_submodule("embedding").weight


def test_a_saved_folder_is_a_sealed_bundle_without_a_recipe(found: tpsprune.Extraction, saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == NAMES
    bundle = read_bundle(saved)
    assert (bundle.recipe_text, bundle.facts) == ("", None)
    assert tpsprune.Plan.from_json(bundle.plan) == found.plan
    assert bundle.versions == found.plan.versions


def test_the_same_extraction_gives_the_same_bytes(
    found: tpsprune.Extraction, saved: Path, tmp_path: Path
) -> None:
    tpsprune.save(found, tmp_path / "again")
    assert all((saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in NAMES)


def test_the_card_says_how_to_load_it_and_what_was_pruned(found: tpsprune.Extraction, saved: Path) -> None:
    card = (saved / "README.md").read_text(encoding="utf-8")
    assert 'model = tpsprune.load("FOLDER", model=net)' in card
    assert f"to {found.macs_share:.2f} of the dense model's multiply-accumulates (target: macs=0.6)" in card
    for change in found.changes:
        assert f"| {change.group} | units | {change.width_before} | {change.width_after} |" in card
    assert all(each.reason in card for each in found.unpruned)
    assert all(f"| {name} | {version} |" in card for name, version in found.plan.versions.items())


def test_weights_trained_further_are_those_that_are_saved(tmp_path: Path) -> None:
    found = extracted("cnn")
    with torch.no_grad():
        for parameter in found.ticket.parameters():
            parameter.add_(1)
    tpsprune.save(found, tmp_path / "ticket")
    again = tpsprune.load(tmp_path / "ticket", model=cnn)
    pairs = zip(again.parameters(), found.ticket.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: net.cpu()])
def test_a_wrapped_architecture_is_taken_out(saved: Path, wrap: Callable[[nn.Module], nn.Module]) -> None:
    assert type(tpsprune.load(saved, model=wrap(cnn()))) is nn.Sequential


def fails() -> nn.Module:
    raise KeyError("no such width")


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return cnn()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (None, r"saved without a recipe.*tpsprune\.load\(folder, model=net\)"),
        (7, r"model is int; expected a torch\.nn\.Module, or a callable"),
        (lambda: 7, r"model is int; expected"),
        (fails, r"the callable given as model fails: KeyError: 'no such width'"),
        (nn.Linear(2, 2), r"the plan is for another model: the plan has 0\.weight .*the model weight"),
        (
            lambda: cnn().half(),
            r"the plan has 0\.weight \[12, 2, 3, 3\] float32, the model 0\.weight .*float16",
        ),
        (on_meta, r"model is on the meta device.*build it on the CPU"),
    ],
    ids=["none", "number", "callable of a number", "fails", "another", "half", "meta"],
)
def test_what_is_not_the_architecture_is_refused(saved: Path, model: Any, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        tpsprune.load(saved, model=model)


def test_the_ticket_itself_is_not_the_architecture(found: tpsprune.Extraction, saved: Path) -> None:
    with pytest.raises(ArtifactError, match="the plan is for another model"):
        tpsprune.load(saved, model=found.ticket)


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_byte_in_any_file_is_noticed(saved: Path, name: str) -> None:
    content = bytearray((saved / name).read_bytes())
    content[len(content) // 2] ^= 1
    (saved / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"not as it was written|damaged|not a manifest"):
        tpsprune.load(saved, model=cnn)


def test_a_plan_for_another_ticket_is_refused(saved: Path) -> None:
    plan = json.loads((saved / "plan.json").read_text())
    del plan["groups"][0]["kept"][0]
    restamp(saved, "plan.json", json.dumps(plan).encode())
    with pytest.raises(ArtifactError, match=r"model, plan and tensors do not make one model: .*in the file"):
        tpsprune.load(saved, model=cnn)


def test_a_link_out_of_the_folder_is_refused(saved: Path, tmp_path: Path) -> None:
    (saved / "ticket.safetensors").rename(tmp_path / "elsewhere")
    (saved / "ticket.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="a link out of its folder"):
        tpsprune.load(saved, model=cnn)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"facts": ...}, "facts is missing"),
        (
            {"facts": {"input_kind": "image", "input_shape": [1], "classes": 2}},
            r"files\.recipe\.toml is missing",
        ),
        ({"formats": {"safetensors": ["ticket.safetensors"], "hf": ["plan.json"]}}, "facts must be there"),
        ({"schema": "tpsprune.bundle/1", "formats": ...}, "facts must be there"),
    ],
)
def test_a_manifest_is_with_a_recipe_and_its_facts_or_with_neither(
    saved: Path, changes: dict[str, Any], words: str
) -> None:
    change_manifest(saved, **changes)
    if "schema" in changes:
        raw = json.loads((saved / "manifest.json").read_text())
        del raw["seal"], raw["files"]["README.md"]
        (saved / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(ArtifactError, match=words):
        tpsprune.load(saved, model=cnn)


def test_a_taken_folder_is_refused_and_left_as_it_is(found: tpsprune.Extraction, saved: Path) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(ArtifactError, match="is there already and not empty"):
        tpsprune.save(found, saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


@pytest.mark.parametrize(
    "change",
    [
        lambda ticket: ticket.half(),
        lambda ticket: ticket.append(nn.Linear(3, 3)),
        lambda ticket: ticket.pop(0),
    ],
    ids=["number type", "a layer more", "a layer less"],
)
def test_a_ticket_that_its_plan_would_not_rebuild_is_not_saved(
    found: tpsprune.Extraction, change: Callable[[Any], Any], tmp_path: Path
) -> None:
    altered = copy.deepcopy(found)
    change(altered.ticket)
    with pytest.raises(ArtifactError, match="the ticket is not as its plan left it: the plan has"):
        tpsprune.save(altered, tmp_path / "ticket")
    assert not (tmp_path / "ticket").exists()
