"""A trained encoder, fine-tuned and frozen, as arms of a comparison: what moves, and what is charged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.pipeline.test_compare import NO_PLAN, measured, quick
from tpsprune import pipeline
from tpsprune.claims import assess
from tpsprune.errors import ArtifactError, RecipeError, RunFolderError
from tpsprune.pipeline.arms import ENCODER, arm_recipe
from tpsprune.pipeline.equal_cost import TicketFacts, cost_of, fit_epochs, windows_to_match
from tpsprune.recipe.compare import TRANSFERRED, arms_of
from tpsprune.records import ArmEnded, Comparing, ComparisonRecord
from tpsprune.runs import ComparisonFolder, RunFolder
from tpsprune.runs.tensors import load_tensors, save_tensors

ARMS = ("dense", *TRANSFERRED)


def compared(
    folder: Path, source: Path | None, arms: tuple[str, ...] = ARMS, *overrides: str
) -> list[Comparing]:
    settings = ("prune.target={macs=0.5}", "compare.head_learning_rate=0.1", *overrides)
    journal = ComparisonFolder(folder)
    return list(pipeline.compare(quick(*settings), journal, arms=arms, pairs=1, source=source, device="cpu"))


@pytest.fixture(scope="module")
def one_pair(trained: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transferred")
    compared(folder, trained.path)
    return folder


@pytest.fixture
def found(one_pair: Path) -> ComparisonRecord:
    return measured(one_pair)


def test_a_frozen_encoder_is_the_sources_and_a_fine_tuned_one_has_moved(
    one_pair: Path, found: ComparisonRecord, trained: RunFolder
) -> None:
    source = load_tensors(trained.dense)[0]
    moved = {}
    for run in found.runs:
        left = RunFolder(one_pair / run.folder)
        if run.arm != "frozen-ticket":
            tensors = load_tensors(left.dense)[0]
            moved[run.arm] = {name for name, each in tensors.items() if not torch.equal(each, source[name])}
    head = {"head.weight", "head.bias"}
    assert moved["frozen"] == head
    assert moved["fine-tune"] > head
    assert moved["dense"] > head


def test_fine_tuning_begins_with_the_encoder_and_a_new_last_layer(trained: RunFolder, tmp_path: Path) -> None:
    still = ("train.learning_rate=1e-9", "train.epochs=1", "stop.draw.epoch=1.0")
    compared(tmp_path, trained.path, ("dense", "fine-tune"), *still, "compare.inference_seconds=0")
    source = load_tensors(trained.dense)[0]
    for run in measured(tmp_path).runs:
        tensors = load_tensors(RunFolder(tmp_path / run.folder).dense)[0]
        conv, head = "blocks.1.conv.weight", "head.weight"
        assert torch.allclose(tensors[conv], source[conv], atol=1e-5) is (run.arm == "fine-tune")
        assert not torch.allclose(tensors[head], source[head], atol=1e-2)


def test_each_arm_is_charged_for_what_it_does_and_the_encoder_to_none(found: ComparisonRecord) -> None:
    runs = {run.arm: run for run in found.runs}
    assert set(runs) == set(ARMS)
    phases = {arm: {window.phase for window in run.windows} for arm, run in runs.items()}
    assert "features" in phases["frozen"]
    assert "prune" not in phases["frozen"]
    assert {"features", "train", "prune", "evaluate"} <= phases["frozen-ticket"]
    assert phases["fine-tune"] == phases["dense"]
    for arm, run in runs.items():
        assert (ENCODER in run.method.excluded) is (arm in TRANSFERRED)
        assert ("dense.safetensors (SHA-256" in run.given) is (arm in TRANSFERRED)
    assert ENCODER in assess(found).may_not_claim[-1]
    dense, ticket = runs["dense"].macs, runs["frozen-ticket"].macs
    assert dense is not None
    assert ticket is not None
    assert ticket <= 0.5 * dense
    assert runs["frozen"].macs == dense
    assert {runs[arm].epochs for arm in ("dense", "fine-tune", "frozen", "frozen-ticket")} == {2.0}


def test_shorter_fine_tuning_costs_what_the_frozen_ticket_did(found: ComparisonRecord) -> None:
    runs = {run.arm: run for run in found.runs}
    facts = TicketFacts(
        plan=NO_PLAN,
        widths={},
        epochs=2.0,
        macs_share=1.0,
        cost=cost_of(windows_to_match(runs["frozen-ticket"].windows)),
    )
    spans = [span for span in found.steps if span.arm == "fine-tune-joules"]
    assert len(spans) == 2
    assert runs["fine-tune-joules"].epochs == pytest.approx(
        fit_epochs("fine-tune-joules", spans, facts, steps_per_epoch=16)
    )
    assert runs["fine-tune-joules"].macs == runs["dense"].macs
    assert found.design.primary == "frozen-ticket"


def test_models_of_all_arms_are_metered_at_inference(found: ComparisonRecord) -> None:
    cells = {(span.arm, span.batch) for span in found.inference}
    assert cells == {(arm, batch) for arm in ARMS for batch in (1, 64)}


def test_another_encoder_is_another_comparison_and_the_same_resumes(
    one_pair: Path, trained: RunFolder, tmp_path: Path
) -> None:
    assert compared(one_pair, trained.path) == []
    tensors = {name: each.clone() for name, each in load_tensors(trained.dense)[0].items()}
    tensors["head.bias"] += 1.0
    save_tensors(tmp_path / "other.safetensors", tensors, {})
    with pytest.raises(RunFolderError, match="recipe_sha256 is"):
        compared(one_pair, tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("arms", "has_source", "overrides", "words"),
    [
        (("dense", "frozen"), False, (), "'frozen' begins with a trained encoder: --from names the run"),
        (
            ("dense", "ticket"),
            True,
            (),
            "no arm begins with a trained encoder: name one of fine-tune, frozen",
        ),
        (
            ("dense", "frozen"),
            True,
            ("task.loss=torch.nn.functional:cross_entropy",),
            "a new last layer needs",
        ),
        (("dense", "frozen"), True, ("task.model={kind='cnn', widths=[12, 20]}",), "blocks.1.conv.weight is"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    trained: RunFolder,
    tmp_path: Path,
    arms: tuple[str, ...],
    has_source: bool,
    overrides: tuple[str, ...],
    words: str,
) -> None:
    with pytest.raises((RecipeError, ArtifactError), match=words):
        compared(tmp_path / "new", trained.path if has_source else None, arms, *overrides)
    assert not (tmp_path / "new").exists()


def test_a_ticket_is_no_encoder_of_a_comparison(trained: RunFolder, tmp_path: Path) -> None:
    pipeline.export(trained.path, tmp_path / "bundle")
    with pytest.raises(ArtifactError, match="is a ticket: a comparison begins with the dense model"):
        compared(tmp_path / "new", tmp_path / "bundle")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("frozen,ticket", "'frozen' begins with an encoder trained elsewhere, and 'ticket' does not"),
        ("dense,fine-tune-joules", "'fine-tune-joules' depends on 'frozen-ticket'"),
        ("dense,frozn", "did you mean 'frozen'"),
    ],
)
def test_arms_that_do_not_go_together_are_named(words: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        arms_of(words)


def test_the_last_layer_has_a_rate_of_its_own_if_one_is_given() -> None:
    plain = quick()
    given = replace(plain, compare=replace(plain.compare, head_learning_rate=0.7))
    for arm in ("frozen", "frozen-ticket"):
        assert arm_recipe(arm, plain).train.learning_rate == plain.train.learning_rate
        assert arm_recipe(arm, given).train.learning_rate == 0.7
    assert arm_recipe("fine-tune", given).train.learning_rate == plain.train.learning_rate


def test_a_resumed_comparison_makes_the_missing_arm(
    one_pair: Path, trained: RunFolder, tmp_path: Path
) -> None:
    """What was measured stays; the frozen encoder alone is run again."""
    lines = (one_pair / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if '"kind": "run"' not in line or '"arm": "frozen",' not in line]
    assert len(kept) < len(lines)
    (tmp_path / "journal.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
    (tmp_path / "runs").symlink_to(one_pair / "runs")
    ended = [event.run.arm for event in compared(tmp_path, trained.path) if isinstance(event, ArmEnded)]
    assert ended == ["frozen"]
