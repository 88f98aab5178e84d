"""The study ``worth``: its plan, its verdicts by hand, and a tiny pair of each kind of regime."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from tests.data.test_idx import idx_bytes
from tests.studies.conftest import MACHINE
from tpsprune import models
from tpsprune.cli import main
from tpsprune.errors import RecipeError
from tpsprune.numerics.small_samples import mean_interval
from tpsprune.records import TaskFacts, load
from tpsprune_studies import tasks, worth
from tpsprune_studies.finding import Finding, Ruling, describe
from tpsprune_studies.worth import ArmResult, Regime, WorthSetup, WorthTraining, WorthTrial

TINY = (
    "train.epochs=2",
    "task.model={kind='mlp', widths=[32, 32]}",
    "stop.draw_by_share=0.5",
    "prune.calibration_items=64",
    "prune.target={macs=0.5}",
    "compare.inference_seconds=0.0",
)
DIGITS = Regime(name="digits", base="digits", data="", changes=TINY)
SIZES = replace(
    DIGITS,
    name="sizes",
    kind="sizes",
    changes=(*TINY, "retrain.epochs=1"),
    sizes=(0.6, 0.4),
    opponents=("scratch-joules", "uniform-joules", "smallest-joules"),
)
ADDITION = Regime(
    name="addition",
    base="modular-addition",
    data="",
    changes=(
        "task.data.modulus=13",
        "task.model.widths=[16]",
        "task.model.embedding=8",
        "train.epochs=20",
        "watch.every_steps=5",
        "stop.draw={rule='epoch', epoch=5}",
    ),
)


FACTS = TaskFacts(input_kind="image", input_shape=(3, 8, 8), classes=3)


def make_net(classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, classes)
    )


@pytest.fixture
def cut(tmp_path: Path) -> WorthSetup:
    """Coloured noise in three classes, and a net with a head for seven that was trained elsewhere."""
    for split in ("train", "test"):
        for label in range(3):
            folder = tmp_path / "images" / split / f"class-{label}"
            folder.mkdir(parents=True)
            for number in range(24):
                pixels = np.random.default_rng([label, number]).integers(0, 80, (8, 8, 3), np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(folder / f"{number}.png")
    torch.manual_seed(5)
    weights = tmp_path / "trained.pt"
    torch.save(make_net(7).state_dict(), weights)
    model = f"kind='custom', factory='{__name__}:make_net', model_args={{classes=3}}, weights='{weights}'"
    regime = Regime(
        name="cut",
        kind="cut",
        base="efficientnet-lite0",
        data="images",
        changes=(
            *TINY,
            "task.data={kind='image-folder', path='IMAGES.zip', size=8}",
            f"task.model={{{model}, weights_match='order'}}",
            "train.batch_size=16",
            "retrain.epochs=2",
        ),
    )
    return WorthSetup(regimes=(regime,), images=tmp_path / "images")


def check(setup: WorthSetup, models: int = 1) -> WorthTraining:
    """Run the first pair of the only regime, and check what holds of each."""
    (regime,) = setup.regimes
    found = worth.run(setup, WorthTrial(regime.name, 1))
    assert [each.arm for each in found.arms] == ["dense", "ticket", *regime.opponents]
    ticket, (dense_macs,) = found.find("ticket"), found.find("dense").macs
    for each in found.arms[1:]:
        assert len(each.accuracies) == len(each.macs) == models
        assert each.cpu_seconds > 0.0
        whole = each.arm == "dense-joules"
        assert all(macs == dense_macs if whole else macs < dense_macs for macs in each.macs)
        assert each.arm != "scratch-joules" or each.macs == ticket.macs
    assert load(WorthTraining, json.loads(json.dumps(asdict(found)))) == found
    return found


@pytest.mark.parametrize("regime", [DIGITS, ADDITION], ids=lambda each: each.name)
def test_a_ticket_is_followed_by_opponents_of_its_cost(regime: Regime) -> None:
    check(WorthSetup(regimes=(regime,)))


def test_several_sizes_come_of_one_training_and_opponents_train_each_alike() -> None:
    found = check(WorthSetup(regimes=(SIZES,)), models=2)
    smallest = found.find("smallest-joules")
    assert smallest.macs == (min(found.find("ticket").macs),) * 2
    assert smallest.epochs > found.find("scratch-joules").epochs
    assert found.find("ticket").cpu_seconds > found.find("dense").cpu_seconds
    assert list(found.find("ticket").macs) == sorted(found.find("ticket").macs, reverse=True)


def test_trained_weights_are_cut_first_and_only_the_head_is_new(cut: WorthSetup, tmp_path: Path) -> None:
    check(cut)
    (regime,) = cut.regimes
    assert cut.images is not None
    begun = worth._with_images(regime.recipe, cut.images, tmp_path)
    state = models.build(begun.task.model, FACTS).state_dict()
    torch.manual_seed(5)
    trained = make_net(7).state_dict()
    assert state["4.weight"].shape == (3, 16 * 36)
    assert all(torch.equal(each, trained[name]) for name, each in state.items() if not name.startswith("4"))


def test_images_are_sampled_by_class_and_seed(
    cut: WorthSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worth, "IMAGES_OF_CLASS", {"train": 5, "test": 3})
    assert cut.images is not None
    for place, seed in (("a", 1), ("b", 1), ("c", 2)):
        worth._copy_some(cut.images, tmp_path / place, seed)
    names = {place: sorted(path.name for path in (tmp_path / place).rglob("*.png")) for place in "abc"}
    assert len(names["a"]) == 3 * (5 + 3)
    assert names["a"] == names["b"] != names["c"]


def test_small_fashion_has_half_the_pixels_and_every_class(tmp_path: Path) -> None:
    images = torch.arange(80)[:, None, None].expand(80, 4, 4).byte().clone()
    images[:, ::2] += 2
    for stem in ("train", "t10k"):
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(idx_bytes(torch.arange(80) % 4))
    found = tasks.small_fashion(str(tmp_path), items=40, held_out=15_000, split_seed=3)
    inputs, labels = found["train"]
    assert inputs.shape == (40, 1, 2, 2)
    assert sorted(labels.bincount().tolist()) == [10, 10, 10, 10]
    first, test = found["test"][0][:, 0, 0, 0], images.float().mean((1, 2)).round()
    assert torch.equal(first.float(), test)


def test_every_regime_has_a_recipe_and_a_name_of_its_own() -> None:
    assert len({each.name for each in worth.REGIMES}) == len(worth.REGIMES)
    for regime in worth.REGIMES:
        settings = regime.recipe
        assert settings.energy.meter == "none"
        assert not settings.watch.signals
        assert bool(regime.sizes) == (regime.kind == "sizes")


def test_the_plan_goes_pair_by_pair_through_what_can_run() -> None:
    images = replace(DIGITS, name="images", data="images")
    setup = WorthSetup(regimes=(replace(DIGITS, pairs=3), images, replace(ADDITION, pairs=2)))
    planned = [(trial.arm, trial.seed) for trial in worth.plan(setup, []).trials]  # type: ignore[attr-defined]
    assert planned == [("digits", 1), ("addition", 1), ("digits", 2), ("addition", 2), ("digits", 3)]
    assert worth.plan(replace(setup, pairs=4), []).total == 8
    assert "no images" in images.explain_absence(None)
    gone = replace(worth.REGIMES[0], changes=("task.data.data_args.folder='nowhere'",))
    assert gone.explain_absence(None).startswith("nowhere is not there")


def test_a_journal_grows_by_pairs_and_by_images_but_not_into_other_regimes() -> None:
    setup = worth.make_setup(DIGITS.recipe, None, None)
    assert setup.decisive() == replace(setup, pairs=9, images=Path("a.zip")).decisive()
    longer = replace(setup, regimes=(replace(worth.REGIMES[0], changes=("train.epochs=3",)),))
    assert longer.decisive() != setup.decisive()
    assert worth.make_setup(DIGITS.recipe, None, None, full=True).pairs == 10


def test_a_cap_and_images_elsewhere_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="a schedule cut off is no opponent"):
        worth.make_setup(DIGITS.recipe, None, 10)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["study", "speed-up", "--images", "."])
    assert result.exit_code == 2
    assert "--images is for 'worth': 'speed-up' takes none" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("points", "cost_share", "verdict"),
    [
        ({"a": (1.0, 2.0, 1.5), "b": (3.0, 3.1, 2.9)}, 1.0, worth.BETTER),
        ({"a": (1.0, 2.0, 1.5), "b": (3.0, 3.1, 2.9)}, 0.94, worth.UNDECIDED),
        ({"a": (-1.0, 2.0, 1.5), "b": (3.0, 3.1, 2.9)}, 1.0, worth.UNDECIDED),
        ({"a": (-1.0, -1.1, -0.9), "b": (3.0, 3.1, 2.9)}, 0.8, worth.AS_GOOD),
        ({"a": (-1.0, -1.1, -0.9), "b": (3.0, 3.1, 2.9)}, 1.06, worth.UNDECIDED),
        ({"a": (0.0, 0.1, 0.0), "b": (0.4, 0.5, 0.4)}, 1.0, worth.AS_GOOD),
        ({"a": (0.3, 0.31, 0.3)}, 1.0, worth.BETTER),
        ({"a": (0.0, 0.0, 0.0)}, 1.0, worth.AS_GOOD),
    ],
)
def test_the_ticket_must_beat_every_opponent_and_the_best_one_need_not_lose(
    points: dict[str, Sequence[float]], cost_share: float, verdict: str
) -> None:
    differences = {arm: mean_interval(each) for arm, each in points.items()}
    assert worth.judge_regime(differences, dict.fromkeys(points, cost_share)) == verdict


@pytest.mark.parametrize(
    ("verdicts", "wins", "ruling"),
    [
        ((worth.BETTER, worth.AS_GOOD), True, Ruling.CONFIRMED),
        ((worth.BETTER, worth.AS_GOOD), False, Ruling.UNDECIDED),
        ((worth.AS_GOOD, worth.UNDECIDED), False, Ruling.UNDECIDED),
        ((worth.AS_GOOD, worth.AS_GOOD), False, Ruling.REFUTED),
        ((), False, Ruling.UNDECIDED),
    ],
)
def test_one_regime_confirms_and_all_must_refute(verdicts: Sequence[str], wins: bool, ruling: Ruling) -> None:
    assert worth.rule(verdicts, wins_among=wins) is ruling


def make(regime: Regime, seed: int, ticket: float, opponent: float) -> WorthTraining:
    accuracies = {"dense": 0.95, "ticket": ticket, **dict.fromkeys(regime.opponents, 0.5)}
    accuracies[regime.opponents[0]] = opponent
    models = len(regime.sizes) or 1
    return WorthTraining(
        trial=WorthTrial(regime.name, seed),
        arms=tuple(
            ArmResult(
                arm=arm,
                accuracies=(accuracy,) * models,
                macs=(100 if arm.startswith("dense") else 40,) * models,
                epochs=2.0,
                cpu_seconds=10.0,
            )
            for arm, accuracy in accuracies.items()
        ),
        seconds=1.0,
    )


def conclude(ticket: float, *regimes: Regime) -> Finding:
    setup = WorthSetup(regimes=(DIGITS, SIZES, ADDITION))
    done = [make(each, seed, ticket + 1e-4 * seed, 0.8) for each in regimes for seed in (1, 2, 3)]
    return worth.conclude(setup, done, MACHINE)


@pytest.mark.parametrize(
    ("ticket", "ruling", "words"),
    [
        (
            0.9,
            "confirmed",
            "2 regimes, the ticket is better than every opponent at equal cost in 2 (digits; sizes).",
        ),
        (
            0.7,
            "refuted",
            "2 regimes, the ticket is no better than the best opponent in 2 (digits; sizes).",
        ),
    ],
)
def test_the_page_tells_what_was_found_in_which_regime_and_what_was_left_out(
    ticket: float, ruling: str, words: str
) -> None:
    found = conclude(ticket, DIGITS, SIZES)
    assert found.ruling == ruling
    assert words in found.sentence
    page = found.render_page()
    assert "Left out here, since data or weights are not at hand: addition." in page
    row = f"| digits | {ticket + 2e-4:.4f} | dense-joules | 0.8000 | {100 * (ticket - 0.8) + 0.02:+.2f} |"
    assert row in page
    assert "| sizes | ticket |" in page
    assert json.dumps(found.to_json())


def test_a_regime_of_one_pair_says_nothing_yet() -> None:
    found = worth.conclude(WorthSetup(regimes=(DIGITS,)), [make(DIGITS, 1, 0.9, 0.8)], MACHINE)
    assert found.ruling == "undecided"
    assert not found.quantities


def test_a_line_of_progress_has_every_arm_with_its_cost() -> None:
    line = describe("worth", WorthSetup(), make(DIGITS, 3, 0.9, 0.8))
    assert line.startswith("digits, seed 3: dense 0.9500 in 10.0 CPU-s, ticket 0.9000 in 10.0 CPU-s,")
