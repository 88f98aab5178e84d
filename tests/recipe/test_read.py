"""Every way to get a recipe wrong meets its exact words, and all faults come at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tpsprune import recipe
from tpsprune.errors import RecipeError
from tpsprune.recipe.read import shipped_recipes
from tpsprune.recipe.schema import signal_names
from tpsprune.recipe.stop import EpochRule
from tpsprune.recipe.task import CnnModel, IdxData, MlpModel, ModularData, ResNetModel
from tpsprune.recipe.train import rewind_epoch

LEAST = """
name = "least"
[task.data]
kind = "digits"
[task.model]
kind = "cnn"
[train]
epochs = 4
"""


@pytest.mark.parametrize(("given", "epochs", "written"), [("2.5", 2.5, "2.5"), ("3.0", 3, "3")])
def test_a_schedule_may_end_within_an_epoch_and_whole_epochs_are_written_in_one_way(
    given: str, epochs: float, written: str
) -> None:
    read = recipe.parse(LEAST, "r.toml", (f"train.epochs={given}",))
    assert read.train.epochs == epochs
    assert f"\nepochs = {written}\n" in recipe.dumps(read)
    assert recipe.parse(recipe.dumps(read), "again.toml") == read


def faults(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        recipe.parse(text, "r.toml", overrides)
    return [str(fault) for fault in caught.value.faults]


def test_the_least_recipe_is_filled_with_defaults() -> None:
    read = recipe.parse(LEAST, "r.toml")
    assert read.train.epochs == 4
    assert read.stop.draw.rule == "plateau"
    assert read.energy.meter == "codecarbon"


def test_every_shipped_recipe_reads_and_has_a_summary() -> None:
    assert "digits" in shipped_recipes()
    for name in shipped_recipes():
        read = recipe.read(name)
        assert read.name == name
        assert read.shows


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epochs=0", "must be greater than 0 (found 0)"),
        ("train.epochs=-3", "must be greater than 0 (found -3)"),
        ("train.epochs=true", "must be a valid number (found True)"),
        ("train.epochs='3'", "must be a valid number (found '3')"),
        ("train.learning_rate=inf", "must be a finite number (found inf)"),
        ("train.learning_rate=nan", "must be a finite number (found nan)"),
        ("train.learning_rate=-1.0", "must be greater than 0 (found -1.0)"),
        ("train.learning_rate=1979-05-27", "must be a valid number (found '1979-05-27')"),
        ("train.learning_rte=1", "unknown key (did you mean 'learning_rate'?)"),
        ("train.optimizer=adam", "must be 'adamw', 'sgd' or 'muon' (did you mean 'adamw'?) (found 'adam')"),
        ("train.batch_size=huge", "must be a valid integer or must be 'full' (found 'huge')"),
        ("prune.target.macs=1.0", "must be less than 1 (found 1.0)"),
        ("prune.target.macs=1.5", "must be less than 1 (found 1.5)"),
        ("prune.target.macs=0.0", "must be greater than 0 (found 0.0)"),
        ("prune.target.macs=-0.5", "must be greater than 0 (found -0.5)"),
        ("prune.ignored_layers=head", "must be a valid array (found 'head')"),
        ("watch.every_epochs=often", "must be a valid integer (found 'often')"),
        (
            "task.data.modulus=7",
            "unknown key (known here: kind, validation_share, test_share, split_seed, augment)",
        ),
        (
            "name=Bad Name",
            "must be lower-case letters, digits and hyphens, 64 at most, and begin with no hyphen (found "
            "'Bad Name')",
        ),
        (
            "schema=tpsprune.recipe/2",
            "must be 'tpsprune.recipe/1' (did you mean 'tpsprune.recipe/1'?) (found 'tpsprune.recipe/2')",
        ),
        ("retrain.rewind=epoch:0", "must be 'none', 'init' or 'epoch:K' with K from 1 (found 'epoch:0')"),
        ("retrain.rewind=epoch:4", "goes to epoch 4, but train.epochs is 4"),
    ],
)
def test_a_fault_of_a_key_is_reported_with_its_place_what_was_found_and_what_would_do(
    override: str, words: str
) -> None:
    assert faults(LEAST, override) == [f"{override.partition('=')[0]}: {words}"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("prunes.x=1", "prunes: unknown key (did you mean 'prune'?)"),
        (
            "watch.signals=['h2']",
            "watch.signals.0: must be 'd_eff', 'h1', 'spectral_edge', 'norm', 'mask_distance', "
            "'condensation', 'collapse', 'logit_rank', 'neural_collapse', 'commutator_defect', "
            "'intrinsic_dimension' or 'hessian' (found 'h2')",
        ),
        (
            "task.data.kind=digit",
            "task.data: unknown 'kind' 'digit' (did you mean 'digits'?); one of 'digits', 'modular', "
            "'idx', 'image-folder', 'text', 'iterated', 'tabular', 'custom'",
        ),
        ("task.model.widths=[8, 0]", "task.model.widths.1: must be greater than or equal to 1 (found 0)"),
        (
            "task.model=cnn & task.model.kind=cnn",
            "--set: 'task.model.kind' goes through 'model', which is not a table",
        ),
        (
            "stop.draw.patience=3",
            "stop.draw: needs 'rule', one of 'none', 'epoch', 'plateau', 'patience', 'threshold', "
            "'mask', 'change', 'reopen', 'consensus'",
        ),
        ("train", "--set: wants section.key=value, found 'train'"),
        ("train.=3", "--set: wants section.key=value, found 'train.=3'"),
        ("watch.every_epochs=1 & watch.every_steps=5", "watch: give every_epochs or every_steps, not both"),
        (
            "stop.draw.rule=epoch & stop.draw.epoch=9.0",
            "stop.draw.epoch: is after train.epochs = 4 (found 9)",
        ),
        (
            "stop.end.rule=patience & stop.end.monitor=tps_coherence",
            "stop.end.monitor: 'tps_coherence' is not read in this recipe (read here: train_loss, "
            "validation_loss, validation_accuracy, d_eff, h1, h1_max, h1_total, h1_sum_of_squares, "
            "spectral_edge, spectral_edge_k, gap_23, edge_gap, edge_stability, norm)",
        ),
        (
            "stop.draw.rule=plateau & stop.draw.monitor=h11",
            "stop.draw.monitor: 'h11' is not read in this recipe (did you mean 'h1'?)",
        ),
        (
            "tps.variant=labels & tps.apply=decoupled",
            "tps.apply: 'labels' works in the loss only; use 'auto' or 'loss'",
        ),
        (
            "tps.variant=moments & tps.apply=decoupled",
            "tps.apply: 'moments' works in the loss only; use 'auto' or 'loss'",
        ),
        (
            "tps.variant=bn-l1 & tps.coupling=1e-4 & tps.apply=decoupled",
            "tps.apply: 'bn-l1' works in the loss only; use 'auto' or 'loss'",
        ),
        (
            "tps.variant=bn-l1",
            "tps.coupling: must be below 1 with 'bn-l1', where it multiplies the sum of scales: 1e-4 is "
            "published (found 1)",
        ),
        (
            "tps.variant=labels & tps.degree=3",
            "tps.degree: is read by variant 'moments' only (here 'labels')",
        ),
        ("tps.layers=['conv']", "tps.layers: is read by variant 'moments' only (here 'auto')"),
        ("prune.round_to=8 & prune.min_width=4", "prune.min_width: must be a multiple of round_to = 8"),
        (
            "retrain.rewind=epoch:3 & stop.draw_by_share=0.5",
            "retrain.rewind: goes to epoch 3, but stop.draw_by_share has the ticket drawn by epoch 2",
        ),
        (
            "stop.budget_joules=5.0 & energy.meter=none",
            "stop.budget_joules: needs a meter, but energy.meter is 'none'",
        ),
        ("watch.signals=['norm', 'd_eff', 'norm']", "watch.signals: names 'norm' more than once"),
        ("stop.draw={rule='epoch'}", "stop.draw.epoch: required, but missing"),
        ("task.model.widths=[]", "task.model.widths: must not be empty"),
        (
            "task.data.kind=modular & task.data.modulus=1025",
            "task.data.modulus: must be less than or equal to 1024 (found 1025)",
        ),
        (
            "task.data.kind=modular & task.data.modulos=3",
            "task.data.modulos: unknown key (did you mean 'modulus'?)",
        ),
        (
            "task.model.kind=mlp & task.model.gated='yes'",
            "task.model.gated: must be a valid boolean (found 'yes')",
        ),
        (
            "task.model.kind=transformer & task.model.layers=0",
            "task.model.layers: must be greater than or equal to 1 (found 0)",
        ),
        (
            "task.loss=reconstruction & task.data.kind=modular & task.model.kind=mlp",
            "task.loss: data of kind 'modular' are no numbers that a model could give back; expected "
            "'cross-entropy' or a function of your own, 'package.module:function' (found 'reconstruction')",
        ),
        (
            "task.loss=reconstruction & task.data.augment=crop",
            "task.data.augment: an image is to be given back as it is; expected 'none' (found 'crop')",
        ),
        (
            "task.loss=reconstruction & task.data={kind='custom', factory='own:data'}",
            "task.loss: custom data have labels of their own; expected 'mse', with the inputs for labels "
            "(found 'reconstruction')",
        ),
        ("task.model.widths=[0]", "task.model.widths.0: must be greater than or equal to 1 (found 0)"),
    ],
)
def test_a_fault_at_another_place_or_between_fields_is_reported_there(overrides: str, words: str) -> None:
    assert faults(LEAST, *overrides.split(" & ")) == [words]


def test_every_signal_that_a_rule_may_use_is_read_of_the_whole_model() -> None:
    """``d_eff_share`` is read by group only: a rule on it would have waited for its deadline in silence."""
    read = recipe.parse(LEAST, "r.toml", ["tps.variant=weights"])
    assert "d_eff_share" not in signal_names(read)
    assert "tps_z1" in signal_names(read)
    assert "tps_z1" not in signal_names(
        recipe.parse(LEAST, "r.toml", ["tps.variant=weights", "tps.coupling=0.0"])
    )


def test_an_end_may_lie_in_the_epochs_of_a_retraining_of_its_own() -> None:
    end = "stop.end={rule='epoch', epoch=9.0}"
    assert recipe.parse(LEAST, "r.toml", [end, "retrain.epochs=6"]).stop.end == EpochRule(epoch=9.0)
    assert faults(LEAST, end) == ["stop.end.epoch: is after train.epochs = 4 (found 9)"]


def test_all_faults_come_at_once() -> None:
    text = (
        LEAST.replace("epochs = 4", "epochs = 0\nlearning_rte = 1") + "[prune.target]\nmacs = 2.0\n[wach]\n"
    )
    with pytest.raises(RecipeError, match=r"r.toml has 4 faults:\n  train.epochs: .*\n  ") as caught:
        recipe.parse(text, "r.toml")
    assert [fault.place for fault in caught.value.faults] == [
        "train.epochs",
        "train.learning_rte",
        "prune.target.macs",
        "wach",
    ]


def test_sections_that_are_required_are_named() -> None:
    assert faults('name = "x"') == ["task: required, but missing", "train: required, but missing"]


def test_broken_toml_is_reported_with_line_and_column() -> None:
    with pytest.raises(RecipeError, match=r"r.toml: is not valid TOML: .*\(at line 2, column 9\)"):
        recipe.parse('name = "x"\nepochs =\n', "r.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = " + "[" * 5_000 + "]" * 5_000, "is nested more deeply than can be read"),
        (".".join("a" * 3_000) + " = 1", "is nested more deeply than can be read"),
        ("seed = " + "9" * 5_000, "is not valid TOML: .*limit"),
    ],
    ids=["arrays", "tables", "digits"],
)
def test_toml_that_python_cannot_follow_is_reported(text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=rf"^r.toml: {words}"):
        recipe.parse(text, "r.toml")


@pytest.mark.parametrize("value", ["[" * 5_000, "9" * 5_000])
def test_an_override_that_python_cannot_follow_is_text(value: str) -> None:
    assert faults(LEAST, f"seed={value}")[0].startswith("seed: must be a valid integer")


def test_a_missing_file_names_the_shipped_recipes_or_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no shipped recipe of that name \(did you mean 'digits'\?\)"):
        recipe.read("digit")
    with pytest.raises(RecipeError, match=r"zzz.toml: no such file, .* \(shipped recipes: .*digits"):
        recipe.read(str(tmp_path / "zzz.toml"))


def test_no_name_and_a_name_too_long_for_any_file_are_reported() -> None:
    with pytest.raises(RecipeError, match=r"give a file, or the name of a shipped recipe"):
        recipe.read("")
    with pytest.raises(RecipeError, match=r"xxx…: cannot be read: File name too long"):
        recipe.read("x" * 300)


def test_another_kind_leaves_behind_what_belonged_to_the_one_before() -> None:
    text = LEAST.replace('kind = "cnn"', 'kind = "cnn"\nwidths = [8]')
    assert recipe.parse(text, "r.toml", ["task.model.kind=resnet"]).task.model == ResNetModel()
    same = recipe.parse(text, "r.toml", ["task.model.kind=cnn"]).task.model
    assert same == CnnModel(widths=(8,))


def test_a_folder_is_not_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"is a folder; a recipe is a TOML file"):
        recipe.read(tmp_path)


def test_a_wrong_encoding_is_reported_with_its_byte_and_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes('name = "x"\nshows = "é"\n'.encode("latin-1"))
    with pytest.raises(RecipeError, match=r"is not UTF-8 text \(byte 0xe9 on line 2\); save it as UTF-8"):
        recipe.read(path)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "bom.toml"
    path.write_bytes(b"\xef\xbb\xbf" + LEAST.encode())
    assert recipe.read(path).name == "least"


def test_overrides_may_be_unquoted_text_or_toml_values() -> None:
    read = recipe.parse(
        LEAST,
        "r.toml",
        ["train.optimizer=sgd", "train.betas=[0.8, 0.9]", "task.model.widths=[4]", "seed = 7"],
    )
    assert (read.train.optimizer, read.train.betas, read.seed) == ("sgd", (0.8, 0.9), 7)


def test_kinds_select_their_own_tables() -> None:
    text = LEAST.replace('kind = "digits"', 'kind = "modular"\nmodulus = 11').replace('"cnn"', '"mlp"')
    read = recipe.parse(text, "r.toml")
    assert read.task.data == ModularData(modulus=11)
    assert read.task.model == MlpModel()
    idx = recipe.parse(LEAST, "r.toml", ["task.data.kind=idx", "task.data.folder=/x"])
    assert idx.task.data == IdxData(folder="/x")


def test_a_rewind_is_an_epoch() -> None:
    assert [rewind_epoch(word) for word in ("none", "init", "epoch:12")] == [None, 0, 12]
