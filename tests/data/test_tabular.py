"""Tables as they come: what is a number, what a word, what the target, and every way to get it wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine

from tpsprune.data import Dataset, load
from tpsprune.data.tabular import _check_header
from tpsprune.errors import DataError
from tpsprune.recipe.task import TabularData

ROWS = [
    (height, 60 + height / 3 + rank % 7, ("red", "blue", "green")[rank % 3], rank % 2, 5.0)
    for rank, height in enumerate(range(150, 210))
]
HEADER = "height,weight,colour,member,constant"


def table(rows: list[tuple[Any, ...]] | None = None, header: str = HEADER) -> str:
    return "\n".join([header, *(",".join(map(str, row)) for row in rows or ROWS)]) + "\n"


def loaded(path: Path, text: str | bytes | None = None, loss: str = "cross-entropy", **more: Any) -> Dataset:
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load(TabularData(path=str(path), **{"target": "member", **more}), loss)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "people.csv"


def test_numbers_are_standardised_by_the_training_split_and_categories_are_one_hot(file: Path) -> None:
    data = loaded(file, table())
    train = data.train.inputs
    assert data.facts.input_shape == (2 + 3 + 1,)
    torch.testing.assert_close(train[:, :2].mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(train[:, :2].std(0, correction=0), torch.ones(2))
    assert not torch.allclose(data.test.inputs[:, :2].mean(0), torch.zeros(2), atol=1e-3)
    whole = torch.cat([split.inputs for split in (data.train, data.validation, data.test)])
    assert set(whole[:, 2:5].flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(whole[:, 2:5].sum(1), torch.ones(60))
    assert not whole[:, 5].any(), "a column that never varies says nothing"


def test_categories_are_features_in_sorted_order(file: Path) -> None:
    rows = [(rank, ("b", "c", "a")[rank % 3], rank % 2) for rank in range(60)]
    data = loaded(file, table(rows, "n,word,member"))
    height = torch.cat([data.train.inputs, data.validation.inputs, data.test.inputs])
    ranks = height[:, 0].argsort()
    assert height[ranks][:3, 1:].tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]


def test_every_row_is_in_one_split_and_classes_are_in_proportion(file: Path) -> None:
    data = loaded(file, table())
    splits = (data.train, data.validation, data.test)
    assert [len(split) for split in splits] == [36, 9, 15]
    rows = torch.cat([split.inputs for split in splits])
    assert len(torch.unique(rows, dim=0)) == 60
    for split in splits:
        counts = split.labels.bincount()
        assert abs(int(counts[0]) - int(counts[1])) <= 1


def test_another_split_seed_draws_other_rows_and_the_same_one_the_same(file: Path) -> None:
    first, again, other = (loaded(file, table(), split_seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.test.inputs, again.test.inputs)
    assert not torch.equal(first.test.inputs, other.test.inputs)


def test_a_target_of_numbers_is_standardised_and_keeps_its_order(file: Path) -> None:
    data = loaded(file, table(), "mse", target="weight")
    assert (data.facts.classes, data.facts.quality) == (1, "R²")
    assert data.train.labels.shape == (36,)
    torch.testing.assert_close(data.train.labels.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(data.train.labels.std(correction=0), torch.tensor(1.0))
    assert data.facts.input_shape == (1 + 3 + 1 + 1,)


def test_numbers_that_are_classes_are_numbered_in_their_own_order(file: Path) -> None:
    rows = [(float(member), member) for member in (9, 10, 11) for _ in range(20)]
    data = loaded(file, table(rows, "n,member"))
    assert data.facts.classes == 3
    order = data.train.inputs[:, 0].argsort()
    labels = data.train.labels[order].tolist()
    assert labels == sorted(labels), "9 comes before 10, as words it would not"


def test_classes_are_cells_as_written_where_the_target_is_named_among_the_categories(file: Path) -> None:
    rows = [(rank, name) for rank in range(20) for name in ("01", "1", str(2**53), str(2**53 + 1))]
    data = loaded(file, table(rows, "n,member"), categorical=("member",))
    assert data.facts.classes == 4
    assert data.train.labels.bincount().tolist() == [12, 12, 12, 12]


@pytest.mark.parametrize("loss", ["cross-entropy", "mse"])
@pytest.mark.parametrize("unit", [1e-300, 1e-200, 1e200, 5e305])
def test_no_unit_of_a_column_is_too_large_or_too_small_to_standardise(
    file: Path, unit: float, loss: str
) -> None:
    target = "member" if loss == "cross-entropy" else "weight"
    default = loaded(file, table(), loss, target=target)
    rows = [
        (height * unit, weight * unit if loss == "mse" else weight, *rest) for height, weight, *rest in ROWS
    ]
    data = loaded(file, table(rows), loss, target=target)
    torch.testing.assert_close(data.train.inputs, default.train.inputs)
    torch.testing.assert_close(data.test.inputs, default.test.inputs)
    torch.testing.assert_close(data.test.labels, default.test.labels)


def test_columns_that_are_left_out_are_not_seen_and_numbers_may_be_categories(file: Path) -> None:
    data = loaded(file, table(), leave_out=("constant", "colour"))
    assert data.facts.input_shape == (2,)
    data = loaded(file, table(), target="colour", categorical=("member",), leave_out=("constant",))
    assert data.facts.input_shape == (2 + 2,)
    assert data.facts.classes == 3


def test_quotes_spaces_blank_lines_and_a_byte_order_mark_are_read(file: Path) -> None:
    text = '\ufeff"a, b",member\n\n 1 ,"yes, both"\n2,no\n' + "".join(
        f"{rank},{('yes, both', 'no')[rank % 2]!r}\n".replace("'", '"') for rank in range(3, 23)
    )
    data = loaded(file, text)
    assert data.facts.input_shape == (1,)
    assert data.facts.classes == 2


@pytest.mark.parametrize(
    ("text", "more", "words"),
    [
        (None, {}, r"task\.data\.path: .*people\.csv is not there; expected a CSV file with a header"),
        ("", {}, r"people\.csv is empty; expected a header and rows below it"),
        (HEADER, {}, r"has a header and no rows; expected rows below it"),
        (table(header="1,2,3,4,5"), {}, r"has no header: its first row holds numbers alone"),
        (b"a,member\n\xff,1\n", {}, r"is not UTF-8 text; save it as UTF-8"),
        (table(header="a,a,b,member,c"), {}, r"has two columns 'a'; expected names that differ"),
        (table(header="a,,b,member,c"), {}, r"column 2 of 5 has no name; expected one"),
        ("a,member\n1,2\n3\n", {}, r"line 3 has 1 cells, the header 2; expected equally many"),
        ('a,member\n1,"2\n', {}, r"line 2: unexpected end of data"),
        (
            table(),
            {"target": "membr"},
            r"task\.data\.target: .* has no column 'membr' \(did you mean 'member'\?\)",
        ),
        (
            table(),
            {"target": "zzz"},
            r"has no column 'zzz' \(columns: height, weight, colour, member, constant\)",
        ),
        (
            table(),
            {"leave_out": ("color",)},
            r"task\.data\.leave_out: .* no column 'color' \(did you mean 'colour'",
        ),
        (table(), {"leave_out": ("member",)}, r"task\.data\.leave_out: 'member' is the target"),
        (
            table().replace("170,", "tall,"),
            {},
            r"line 22: 'tall' in column 'height' is no number, and other cells are",
        ),
        (table().replace("170,", "nan,"), {}, r"line 22: 'nan' in column 'height' is no finite number"),
        (
            table().replace("170,", ","),
            {},
            r"line 22: column 'height' is empty; fill it or set task\.data\.leave_out",
        ),
        (
            table([(rank, 1) for rank in range(9)], "a,member"),
            {},
            r"'member' holds only one class; expected two classes",
        ),
        (
            table(),
            {"target": "height"},
            r"'height' holds 60 different values in 60 rows, too many for classes; if",
        ),
        (table([(1, rank % 2) for rank in range(9)], "member,x"), {"loss": "mse"}, r"'member' never varies"),
        (table(), {"loss": "mse", "target": "colour"}, r"'colour' holds words \('red'\); use numbers or set"),
        (
            table([(rank % 2,) for rank in range(9)], "member"),
            {},
            r"has no column but the target; expected one or more",
        ),
        (
            table([(f"w{rank}", rank % 2) for rank in range(300)], "a,member"),
            {},
            r"300 different words: names",
        ),
        (
            table(),
            {"test_share": 0.01},
            r"task\.data\.test_share: leaves the test split of 1 items without class",
        ),
        (
            table([(rank, f"{rank % 2:0{1 + rank % 3}}") for rank in range(60)], "a,member"),
            {},
            r"task\.data\.target: 'member' holds '0' and '0+', which are one number; .*categorical = \['mem",
        ),
        (
            table([(rank, 2**53 + rank % 2) for rank in range(60)], "a,member"),
            {},
            r"'9007199254740992' and '9007199254740993', which are one number",
        ),
        (
            table([(rank or 1e308, rank % 2) for rank in range(60)], "a,member"),
            {"split_seed": 5},
            r"task\.data: column 'a' holds 1e\+308, nowhere near the numbers of the training",
        ),
        (table(), {"test_share": 0.9, "validation_share": 0.2}, r"leave nothing to train on"),
    ],
)
def test_what_is_wrong_with_a_table_is_reported_in_one_line(
    file: Path, text: str | bytes | None, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words) as caught:
        loaded(file, text, **more)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "loss", "theirs"),
    [
        ("breast-cancer", "cross-entropy", load_breast_cancer),
        ("wine", "cross-entropy", load_wine),
        ("diabetes", "mse", load_diabetes),
    ],
)
def test_the_tables_of_scikit_learn_are_read_as_it_reads_them(source: Any, loss: str, theirs: Any) -> None:
    found = theirs(scaled=False) if source == "diabetes" else theirs()
    data = load(TabularData(source=source), loss)
    splits = (data.train, data.validation, data.test)
    ours = torch.cat([split.inputs for split in splits]).double()
    raw = torch.from_numpy(found.data)
    assert ours.shape == raw.shape
    for column, other in zip(ours.T, raw.T, strict=True):
        # Standardising keeps the order of a column's cells, and their spacing up to one factor.
        one, two = column.sort().values, other.sort().values
        mine, his = ((each - each[0]) / (each[-1] - each[0]) for each in (one, two))
        torch.testing.assert_close(mine, his, atol=1e-5, rtol=0)
    if loss == "cross-entropy":
        labels = torch.cat([split.labels for split in splits])
        assert labels.bincount().tolist() == torch.from_numpy(found.target).bincount().tolist()


def test_a_header_is_looked_at_once_whatever_its_width() -> None:
    class Header(list[str]):
        def index(self, *_: object) -> int:  # type: ignore[override]
            raise AssertionError("every name is looked for among all of them")

    _check_header("table.csv", Header(f"column {rank}" for rank in range(200_000)))
    with pytest.raises(DataError, match="has two columns 'b'"):
        _check_header("table.csv", Header(("a", "b", "b")))


def test_a_table_outgrows_neither_its_file_nor_its_categories(file: Path) -> None:
    rows = [(f"word {rank % 200}", f"kind {rank % 199}", rank % 2) for rank in range(4000)]
    text = table(rows, "word,kind,member")
    with pytest.raises(DataError, match=r"longer than 1,000 bytes.*task.data.max_bytes = BYTES reads more"):
        loaded(file, text, max_bytes=1000)
    with pytest.raises(DataError, match=r"of 199 words of column 'kind' the table outgrows 16 times"):
        loaded(file, text, max_bytes=500_000)
    assert loaded(file, text, max_bytes=1_000_000).facts.input_shape == (399,)
