"""A model in parts on two processes trains, is read, saved and cut as one that is whole."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.scale.duo import Duo
from tests.scale.nets import RECIPE, Residual
from tests.scale.spread_cases import SPREAD
from tpsprune import recipe
from tpsprune.errors import PeersError, PruneError, RecipeError, RunFolderError
from tpsprune.numerics.peers import ALONE
from tpsprune.pipeline.slots import read_parts
from tpsprune.pipeline.spread import whole_models_in
from tpsprune.pipeline.workbench import set_up
from tpsprune.recipe.train import Signal

pytestmark = pytest.mark.xdist_group("duo")
CASES = "tests.scale.spread_cases"
SIGNALS: tuple[Signal, ...] = (
    "d_eff",
    "h1",
    "spectral_edge",
    "norm",
    "mask_distance",
    "condensation",
    "collapse",
    "logit_rank",
    "neural_collapse",
    "intrinsic_dimension",
)


def ask(duo: Duo, case: str, **arguments: Any) -> list[Any]:
    return [each.value for each in duo.ask(f"{CASES}:{case}", **arguments)]


def test_the_first_process_s_weights_lie_in_parts_on_both(duo: Duo) -> None:
    answers = ask(duo, "weights")
    for each in answers:
        assert each["names"]
        assert each["difference"] == 0
        assert each["shift"]
        assert not each["persistent"]
        assert each["frozen"] == ["blocks.0.rise.bias"]
        assert each["first_alone"] == []
    assert sum(each["parts"] for each in answers) == answers[0]["whole"]
    assert max(each["parts"] for each in answers) < 0.6 * answers[0]["whole"]


def test_what_is_tied_outside_of_the_blocks_stays_tied(duo: Duo) -> None:
    for each in ask(duo, "tied"):
        assert each == {"same": True, "equal": True, "parameters": True}


@pytest.mark.parametrize(("optimizer", "gain"), [("adamw", 0.0), ("sgd", 0.0), ("adamw", 0.5)])
def test_twenty_steps_are_those_of_replicated_training_to_the_bit(
    duo: Duo, optimizer: str, gain: float
) -> None:
    settings = {"optimizer": optimizer, "grokfast_gain": gain}
    for each in ask(duo, "steps", settings=settings, steps=20, shards=2, fused=False):
        assert each["losses"] == 0
        assert each["difference"] == 0
    assert each["compared"] == 0  # of the second process: the whole is the first's alone


def test_other_kernels_and_a_clipped_norm_differ_by_rounding_alone(duo: Duo) -> None:
    for settings in ({}, {"clip_norm": 0.3}, {"optimizer": "sgd"}):
        for shards in (2, 4):
            answers = ask(duo, "steps", settings=settings, steps=4, shards=shards, fused=True)
            assert max(each["losses"] for each in answers) < 1e-6


@pytest.mark.parametrize("items", [9, 16, 1])
def test_processes_with_unequal_numbers_of_chunks_score_as_one(duo: Duo, items: int) -> None:
    ours, theirs = ask(duo, "score", items=items, at_a_time=4)
    assert ours == theirs
    assert ours[0] == pytest.approx(ours[1], abs=1e-7)


def test_moments_are_dealt_out_and_gathered_again(duo: Duo) -> None:
    answers = ask(duo, "dealt")
    assert all(each["same"] for each in answers)
    dealt = sum(each.numel() for name, each in Residual().named_parameters() if name != "stem.bias")
    assert sum(each["held"] for each in answers) == dealt


@pytest.mark.parametrize(("h1_every", "exact_below"), [(1, 10**6), (2, 100)])
def test_every_signal_reads_the_parts_as_the_whole(duo: Duo, h1_every: int, exact_below: int) -> None:
    names = ",".join(f"'{each}'" for each in SIGNALS)
    overrides = [f"watch.signals=[{names}]", f"watch.h1_every={h1_every}"]
    first, second = ask(duo, "readings", overrides=overrides, exact_below=exact_below)
    assert second == first["found"]
    assert first["found"] == first["wanted"]
    read = {signal for signal, _, value, _ in first["found"][-1] if value is not None}
    assert {"d_eff", "h1_max", "spectral_edge", "norm", "mask_distance", "condensation", "nc1"} <= read


@pytest.mark.parametrize("gather", ["disk", "host"])
@pytest.mark.parametrize("more", [(), ("prune.target={tolerance=0.05}",)])
def test_a_cut_of_the_whole_is_that_of_one_process_to_the_bit(
    duo: Duo, tmp_path: Path, gather: str, more: tuple[str, ...]
) -> None:
    first, second = ask(duo, "cut", gather=gather, overrides=list(more), folder=str(tmp_path / "runs"))
    assert list(tmp_path.iterdir()) == []
    assert first["in_files"] == (6 if gather == "disk" else 0)
    for each in (first, second):
        assert each["in_memory"]
        assert each["kept"]
    assert first["plan"] == second["plan"]
    assert first["same_plan"]
    assert first["difference"] == 0
    assert first["moments"] == 0
    assert first["is_whole"]
    assert not second["is_whole"]
    assert first["parts"] + second["parts"] == first["numbers"]


def test_files_that_would_lie_in_memory_are_refused() -> None:
    shared = Path("/dev") / "shm"
    if not shared.is_dir():
        pytest.skip("no file system in memory here")
    read = recipe.parse(RECIPE, "spread.toml", SPREAD)
    with (
        pytest.raises(PruneError, match=r"prune\.gather = 'disk': .* lies in memory .*; 'host' takes"),
        whole_models_in(shared / "none" / "runs", read, ALONE),
    ):
        pass
    assert not list(shared.glob(".tmp-tpsprune-*"))


def test_one_block_and_what_is_in_none_lie_open_at_most(duo: Duo) -> None:
    for each in ask(duo, "largest_share"):
        assert each["closed"]
        assert each["seen"] <= each["counted"] < 0.7 * each["total"]


def test_parts_are_read_by_another_number_of_processes_and_never_by_pickle(
    duo: Duo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").mkdir()
    first, second = ask(duo, "checkpoints", folder=str(tmp_path))
    assert first == second
    assert first["names"] == ["a", "b", "a"]
    assert first["current"] == "b"
    assert len(first["files"]) == 2
    assert all(each.endswith(".safetensors") for each in first["files"])

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a run folder was read by pickle")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        found = read_parts(tmp_path / "state" / "b", Residual())
    assert {name: each.numpy().tobytes().hex() for name, each in found.items()} == first["bits"]


def test_parts_of_another_model_are_refused(duo: Duo, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    ask(duo, "checkpoints", folder=str(tmp_path))
    with pytest.raises(RunFolderError, match=r"fall.weight is \[24, 33\], and the model has \[24, 40\]"):
        read_parts(tmp_path / "state" / "b", Residual(hidden=40))
    whole = next((tmp_path / "state" / "b").iterdir())
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(RunFolderError, match="damaged"):
        read_parts(tmp_path / "state" / "b", Residual())


MLP = "task.model={kind='mlp', widths=[32, 32]}"
SHARED = "task.model={kind='custom', factory='tests.scale.nets:shared'}"


def test_what_the_first_process_refuses_in_set_up_is_said_by_all(duo: Duo) -> None:
    for each in ask(duo, "refused", overrides=[*SPREAD, "prune.target={macs=1e-6}"]):
        assert "macs=1e-06 cannot be reached" in each
    assert ask(duo, "tied")  # and nobody waits for another


def test_the_folder_of_the_files_is_gone_with_those_made_for_it(tmp_path: Path) -> None:
    read = recipe.parse(RECIPE, "spread.toml", SPREAD)
    out = tmp_path / "some" / "runs"
    with whole_models_in(out, read, ALONE) as store:
        assert store is not None
        assert out in store.folder.parents
    assert not list(tmp_path.iterdir())
    out.mkdir(parents=True)
    with whole_models_in(out, read, ALONE):
        assert list(out.iterdir())
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*SPREAD, MLP], "Mlp has no blocks that repeat"),
        ([*SPREAD, SHARED], "'blocks.0.rise.weight' of block 'blocks.0' is shared with block 'blocks.1'"),
    ],
)
def test_a_model_that_cannot_be_spread_is_refused_everywhere(
    duo: Duo, overrides: list[str], message: str
) -> None:
    for each in ask(duo, "refused", overrides=overrides):
        assert message in each
        assert "train.spread = 'replicate' trains it" in each


def test_one_process_that_no_launcher_started_is_refused() -> None:
    with pytest.raises(PeersError, match="torchrun --nproc-per-node=N -m tpsprune train RECIPE"):
        set_up(recipe.parse(RECIPE, "spread.toml", SPREAD), "cpu")


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("train.optimizer=muon", "train.optimizer"),
        ("train.compile=true", "train.compile"),
        ("train.memory_format=channels-last", "train.memory_format"),
        ("tps.variant=weights", "tps.variant"),
        ("watch.signals=['commutator_defect']", "watch.signals"),
        ("retrain.adapter=lora", "retrain.adapter"),
        ("prune.calibration=synthetic", "prune.calibration"),
        ("prune.low_rank=auto", "prune.low_rank"),
        ("prune.target={latency=0.5}", "prune.target"),
        ("prune.target={joules=0.5}", "prune.target"),
    ],
)
def test_what_is_not_done_yet_is_refused_by_name(override: str, place: str) -> None:
    with pytest.raises(RecipeError) as raised:
        recipe.parse(RECIPE, "spread.toml", [*SPREAD, override])
    assert [each.place for each in raised.value.faults] == [place]
    recipe.parse(RECIPE, "spread.toml", [*SPREAD])
    recipe.parse(RECIPE, "spread.toml", [override])


def test_a_recipe_that_says_nothing_of_it_is_written_as_before() -> None:
    text = recipe.dumps(recipe.parse(RECIPE, "spread.toml", ()))
    assert "spread" not in text
    assert "gather" not in text
    spread = recipe.parse(RECIPE, "spread.toml", SPREAD)
    assert recipe.parse(recipe.dumps(spread), "again.toml", ()) == spread


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("prune.units=taylor", "prune.units"),
        ("prune.units=synflow", "prune.units"),
        ("prune.low_rank=true", "prune.low_rank"),
        ("prune.repair=true", "prune.repair"),
        ("prune.repair_steps=10", "prune.repair_steps"),
    ],
)
def test_what_takes_the_memory_that_files_spare_is_refused_by_name(override: str, place: str) -> None:
    with pytest.raises(RecipeError) as raised:
        recipe.parse(RECIPE, "spread.toml", [*SPREAD, override])
    assert [each.place for each in raised.value.faults] == [place]
    assert "prune.gather = 'host'" in str(raised.value)
    recipe.parse(RECIPE, "spread.toml", [*SPREAD, "prune.gather=host", override])


@pytest.mark.parametrize("where", ["disk", "host"])
def test_gathering_is_for_a_spread_model(where: str) -> None:
    with pytest.raises(RecipeError, match=r"is read with train\.spread = 'shard' only"):
        recipe.parse(RECIPE, "spread.toml", [f"prune.gather={where}"])
