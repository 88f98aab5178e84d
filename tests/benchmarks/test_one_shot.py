"""The pure parts of the one-shot benchmark: its journal, its tables, its sentences, its measures."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import one_shot_conduct
from benchmarks.one_shot_cuts import DENSE
from benchmarks.one_shot_folding import folded
from benchmarks.one_shot_methods import BASELINES, Method, method_of, methods
from benchmarks.one_shot_rows import Journal, Row, fingerprint
from benchmarks.one_shot_table import beaten, cell, net_table, settled_cell, verdicts, worst_miss
from benchmarks.zoo.resnet50 import ResNet50
from benchmarks.zoo.tasks import TASKS
from benchmarks.zoo.transformers import TokenTransformer, Vit
from tpsprune.data.photographs import crops

SCRIPTS = sorted(path.stem for path in Path(one_shot_conduct.__file__).parent.glob("*.py"))
OURS = "interpolation/effective-rank/fold"


def row(method: str, share: float, score: float | None, seed: int = 0, **more: object) -> Row:
    return Row(net="digits", seed=seed, method=method, share=share, score=score, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_benchmark_can_be_imported(name: str) -> None:
    import_module(f"benchmarks.{name}")


def test_a_quick_run_is_of_digits_alone_with_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["one_shot.py", "--quick"])
    settings = one_shot_conduct._arguments()
    assert (settings.nets, settings.seeds, settings.heal_steps) == ("digits", 2, 50)


def test_a_journal_read_again_holds_what_was_written(tmp_path: Path) -> None:
    book = Journal(tmp_path / "journal.jsonl")
    written = row(OURS, 0.5, 0.875, macs_share=0.496, more={"parts": {"fold": 1.5}})
    book.add(written)
    assert Journal(book.file).rows == (written,)


def test_a_line_cut_off_by_a_kill_is_measured_again_and_harms_no_other(tmp_path: Path) -> None:
    book = Journal(tmp_path / "journal.jsonl")
    first, second = row(OURS, 0.5, 0.9), row(OURS, 0.25, 0.8)
    book.add(first)
    book.add(second)
    book.file.write_bytes(book.file.read_bytes()[:-9])
    again = Journal(book.file)
    assert again.missing([first.key, second.key]) == [second.key]
    again.add(second)
    assert Journal(book.file).rows == (first, second)


def test_a_row_with_a_problem_is_tried_again_and_then_replaced(tmp_path: Path) -> None:
    book = Journal(tmp_path / "journal.jsonl")
    book.add(row(OURS, 0.5, None, problem="out of reach"))
    assert book.missing([row(OURS, 0.5, None).key]) == [row(OURS, 0.5, None).key]
    book.add(row(OURS, 0.5, 0.9))
    assert Journal(book.file).rows == (row(OURS, 0.5, 0.9),)
    assert book.missing([row(OURS, 0.5, None).key]) == []


def test_the_fingerprint_follows_the_code_that_is_measured_and_no_other(tmp_path: Path) -> None:
    measured, other = tmp_path / "tpsprune" / "pruning", tmp_path / "tpsprune" / "report"
    for folder in (measured, other):
        folder.mkdir(parents=True)
        (folder / "a.py").write_text("a = 1\n")
    before = fingerprint(tmp_path)
    (other / "a.py").write_text("a = 2\n")
    assert fingerprint(tmp_path) == before
    (measured / "a.py").write_text("a = 2\n")
    assert fingerprint(tmp_path) != before


def test_every_method_has_a_name_of_its_own_that_leads_back_to_it() -> None:
    every = methods(batch_norm=True)
    assert len({each.key for each in every}) == len(every) == 7 + 7 * (2 * 2 + 1)
    assert all(method_of(each.key) == each for each in every)


def test_a_net_without_batch_norm_is_spared_what_asks_for_one() -> None:
    every = methods(batch_norm=False)
    assert not any(each.mend == "batch norm" or each.units == "bn-scale" for each in every)
    assert {each.units for each in every} == {"interpolation", *BASELINES} - {"bn-scale"}


@pytest.mark.parametrize(
    ("mend", "fold", "recalibrate"),
    [("as cut", False, False), ("batch norm", False, True), ("fold", True, True)],
)
def test_a_mend_is_two_switches_of_the_recipe(mend: str, fold: bool, recalibrate: bool) -> None:
    settings = Method("magnitude", "uniform", mend).settings(0.5)  # type: ignore[arg-type]
    assert (settings.compensate, settings.recalibrate) == (fold, recalibrate)
    assert (settings.units, settings.widths, str(settings.target)) == ("magnitude", "uniform", "macs=0.5")


def test_folding_merges_units_that_are_equal_without_loss() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
    )
    with torch.no_grad():
        for conv in (model[0], model[3]):  # Every unit is there twice.
            conv.weight[4:], conv.bias[4:] = conv.weight[:4], conv.bias[:4]
    batches = list(torch.randn(64, 1, 9, 9).split(32))
    model(batches[0])
    found, share = folded(model.eval(), batches, 0.3)
    assert found[0].out_channels == 4
    assert share <= 0.3
    torch.testing.assert_close(found(batches[0]), model(batches[0]), rtol=1e-4, atol=1e-5)


def test_a_cell_is_the_mean_and_standard_deviation_over_seeds() -> None:
    rows = [row(OURS, 0.5, 0.9, seed=0), row(OURS, 0.5, 0.8, seed=1), row(OURS, 0.25, 0.1)]
    found = cell(rows, "digits", OURS, 0.5)
    assert found is not None
    assert found.words == "0.850 ±0.071"


def test_a_baseline_is_given_the_better_of_its_two_ways_and_says_which() -> None:
    rows = [row("random/uniform/as cut", 0.5, 0.3), row("random/global-magnitude/as cut", 0.5, 0.4)]
    assert "0.400 g" in "\n".join(net_table(rows, "digits", [0.5], "effective-rank"))


def test_the_other_seeds_take_the_widths_that_were_better_on_the_first() -> None:
    rows = [row("random/uniform/fold", 0.5, 0.3), row("random/global-magnitude/fold", 0.5, 0.4)]
    uniform, globally = (Method("random", widths, "fold") for widths in ("uniform", "global-magnitude"))
    assert beaten(rows, "digits", uniform, 0.5)
    assert not beaten(rows, "digits", globally, 0.5)
    assert not beaten([], "digits", uniform, 0.5)
    assert not beaten(rows, "digits", uniform, 0.25)
    assert not beaten(rows[:1], "digits", uniform, 0.5)


def test_later_seeds_do_not_turn_over_what_the_first_has_settled() -> None:
    first = [row("fpgm/uniform/fold", 0.5, 0.9), row("fpgm/global-magnitude/fold", 0.5, 0.8)]
    later = [row("fpgm/uniform/fold", 0.5, 0.1, seed=1), row("fpgm/global-magnitude/fold", 0.5, 0.8, seed=1)]
    rows = [*later, *first]
    assert not beaten(rows, "digits", Method("fpgm", "uniform", "fold"), 0.5)
    found = settled_cell(rows, "digits", "fpgm", "fold", 0.5)
    assert found is not None
    assert (found.method, sorted(found.scores)) == ("fpgm/uniform/fold", [0.1, 0.9])
    assert settled_cell(later, "digits", "fpgm", "fold", 0.5) is None


def test_ours_is_measured_with_all_its_widths_on_every_seed() -> None:
    rows = [row("interpolation/uniform/fold", 0.5, 0.3), row("interpolation/global-magnitude/fold", 0.5, 0.4)]
    assert not beaten(rows, "digits", Method("interpolation", "uniform", "fold"), 0.5)


def test_a_table_of_three_shares_is_at_most_a_hundred_columns_wide() -> None:
    shares = (0.75, 0.5, 0.25)
    every = [
        row(each.key, share, 0.9876, seed)
        for each in methods(batch_norm=True)
        for share in shares
        for seed in range(3)
    ]
    lines = net_table(every, "digits", shares, "global-magnitude")
    assert len(lines) == 2 + 7 + 7 * 3
    assert max(map(len, lines)) <= 100


def test_where_a_baseline_wins_the_report_says_so() -> None:
    rows = [
        row(DENSE, 1.0, 0.95),
        row(OURS, 0.5, 0.9),
        row("lamp/uniform/as cut", 0.5, 0.91),
        row("fpgm/uniform/fold", 0.5, 0.89),
    ]
    (sentence,) = verdicts(rows, "digits", [0.5], "effective-rank")
    assert "ours 0.900 (-5.0 points from dense)" in sentence
    assert "lamp 0.910, **wins**" in sentence
    assert "fpgm 0.890, loses" in sentence


def test_a_difference_that_the_table_does_not_show_is_a_tie() -> None:
    rows = [row(DENSE, 1.0, 0.95), row(OURS, 0.5, 0.9001), row("lamp/uniform/as cut", 0.5, 0.9004)]
    assert "lamp 0.900, ties" in verdicts(rows, "digits", [0.5], "effective-rank")[0]


def test_a_refusal_stands_where_its_figure_would() -> None:
    rows = [row(DENSE, 1.0, 0.95), row(OURS, 0.25, None, problem="at least 0.3 can be reached")]
    assert "refused: at least 0.3 can be reached" in verdicts(rows, "digits", [0.25], "effective-rank")[0]


def test_the_worst_miss_is_the_farthest_from_its_own_target() -> None:
    near, far = row(OURS, 0.5, 0.9, macs_share=0.499), row(OURS, 0.25, 0.9, macs_share=0.26)
    assert worst_miss([near, far, row(DENSE, 1.0, 0.9, macs_share=1.0)], "digits") == far


def test_crops_to_fit_on_and_crops_to_try_on_share_no_pixel() -> None:
    photo = torch.zeros(3, 300, 640, dtype=torch.uint8)
    photo[:, :, 320:] = 255
    left, right = (crops([photo], 4, 0, half) for half in (0, 1))
    assert left.shape == (4, 3, 224, 224)
    torch.testing.assert_close(left, torch.full_like(left, -127 / 128))
    torch.testing.assert_close(right, torch.ones_like(right))


def test_resnet_50_is_the_one_of_the_paper() -> None:
    with torch.device("meta"):
        model = ResNet50()
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_557_032


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_transformers_answer_with_a_score_for_each_class(dtype: torch.dtype) -> None:
    vit = Vit((1, 8, 8), 4, 16, 2, 2, 5).to(dtype)
    assert vit(torch.randn(3, 1, 8, 8, dtype=dtype)).shape == (3, 5)
    tokens = TokenTransformer(7, 16, 2, 2, 7).to(dtype)
    assert tokens(torch.tensor([[0, 6], [3, 1]])).shape == (2, 7)


def test_a_token_transformer_that_reads_only_at_the_end_hears_both_tokens() -> None:
    torch.manual_seed(0)
    model = TokenTransformer(7, 16, 2, 2, 7)
    one, other, third = model(torch.tensor([[0, 6], [3, 6], [0, 5]]))
    assert not torch.allclose(one, other)
    assert not torch.allclose(one, third)


def test_every_task_is_listed_under_its_own_name() -> None:
    assert all(task.name == name for name, task in TASKS.items())
