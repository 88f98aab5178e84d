from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpsprune.energy.wall_meter import WallMeter, read_wall_meter
from tpsprune.errors import MeterError

NOON = 1_738_324_800
"""2025-01-31T12:00:00Z."""
PLAIN = "timestamp,watts\n2025-01-31T12:00:00Z,100\n2025-01-31T12:00:01Z,110.5\n2025-01-31T12:00:03Z,90\n"


def read(tmp_path: Path, text: str | bytes) -> WallMeter:
    path = tmp_path / "plug.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_wall_meter(path)


def test_readings_come_with_the_files_name_and_hash(tmp_path: Path) -> None:
    meter = read(tmp_path, PLAIN)
    assert meter.seconds.tolist() == [NOON, NOON + 1, NOON + 3]
    assert meter.watts.tolist() == [100.0, 110.5, 90.0]
    assert meter.name == "plug.csv"
    assert meter.sha256 == hashlib.sha256(PLAIN.encode()).hexdigest()
    assert meter.interval_seconds == 1.5


@pytest.mark.parametrize(
    ("header", "first", "second"),
    [
        ("Time (UTC);Power [W]", "2025-01-31 12:00:00;100,5", "2025-01-31 12:00:01;0"),
        ("DATE\tkW", "2025-01-31T13:00:00+01:00\t0.1005", "2025-01-31T13:00:01+01:00\t0"),
        ("date;Kilowatts", "2025-01-31T12:00:00Z;0,1005", "2025-01-31T12:00:01Z;0"),
        ("timestamp_ms,power_w", f"{NOON}000,100.5", f"{NOON}100,0"),
        ("unix_time,powerW", f"{NOON},1.005e2", f"{NOON + 1}.5,0"),
        ("volts,Timestamp,Watt,note", f"230,{NOON},100.5,x", f"230,{NOON + 1}, 0 ,"),
        ('"Time, UTC",watts', "2025-01-31 12:00:00,100.5", "2025-01-31 12:00:01,0"),
        ('"time","kWh","watts"', f'"{NOON}","1","100.5"', f'"{NOON + 1}","1","0"'),
    ],
)
def test_common_shapes_are_read(tmp_path: Path, header: str, first: str, second: str) -> None:
    meter = read(tmp_path, f"\ufeff{header}\r\n{first}\r\n\r\n{second}\r\n")
    assert meter.seconds[0] == NOON
    assert NOON < meter.seconds[1] < NOON + 2
    assert meter.watts.tolist() == pytest.approx([100.5, 0.0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "",
            r"plug\.csv: is empty: wanted are a header and lines of a time \(timestamp, time or date in its",
        ),
        ("\n \n", r"is empty"),
        ("timestamp,watts\n", r"holds 0 readings; at least two are needed$"),
        ("\n".join(PLAIN.split("\n")[:2]), r"holds 1 readings; at least two are needed$"),
        (
            "1738324800,100\n",
            r"columns found: '1738324800', '100'; wanted: a time \(timestamp, time or date in",
        ),
        (
            "timestamp,power\n",
            r"columns found: 'timestamp', 'power'; wanted: .* a power with its unit in its name",
        ),
        ("timestamp;kWh\n", r"columns found: 'timestamp', 'kWh'; wanted: "),
        ("timestamp,mW\n", r"columns found: 'timestamp', 'mW'; wanted: "),
        ("entity,watts\n", r"columns found: 'entity', 'watts'; wanted: "),
        ("date,time,watts\n", r"more than one column could be the time \('date', 'time'\): leave one$"),
        ("time,w,kw\n", r"more than one column could be the power \('w', 'kw'\): leave one$"),
        (
            PLAIN.replace("110.5", "abc"),
            r"line 3: power 'abc' is not a number: leave out lines without a reading$",
        ),
        (PLAIN.replace("110.5", ""), r"line 3: power '' is not a number"),
        (PLAIN.replace("110.5", "1_0"), r"line 3: power '1_0' is not a number"),
        (PLAIN.replace("110.5", "-1"), r"line 3: power '-1' is negative$"),
        (PLAIN.replace("110.5", "nan"), r"line 3: power 'nan' is not finite$"),
        (PLAIN.replace("110.5", "1e999"), r"line 3: power '1e999' is not finite$"),
        (
            PLAIN.replace("110.5", "110,5"),
            r"line 3 has 3 columns where the header has 2 \(parted by commas\)$",
        ),
        (PLAIN.replace(",110.5", ""), r"line 3 has 1 columns where the header has 2"),
        ('time,W\n2025-01-31T12:00:00Z,"1,000"\n', r"line 2: power '1,000' is not a number"),
        (
            "time;W\n2025-01-31T12:00:00Z;1.000,5\n",
            r"line 2: power '1\.000,5' is not a number",
        ),
        (
            PLAIN.replace("T12:00:03Z", "T12:00:01Z"),
            r"line 4: time 2025-01-31T12:00:01Z is not after that of the reading before",
        ),
        (PLAIN.replace("T12:00:03Z", "T11:00:01Z"), r"line 4: time .* is not after"),
        (
            PLAIN.replace("T12:00:00Z", "T12:00:00"),
            r"line 2: time '2025-01-31T12:00:00' has no zone, and none is guessed: write it with one, as"
            r" 2025-01-31T12:00:00Z or 2025-01-31T13:00:00\+01:00, or name the column timestamp_utc if it is"
            r" UTC$",
        ),
        (
            PLAIN.replace("2025-01-31T12:00:01Z", "noon"),
            r"line 3: 'noon' is no time: write it as ISO 8601 with",
        ),
        (
            PLAIN.replace("2025-01-31T12:00:01Z", "1738324801"),
            r"line 3: '1738324801' is no time: write it",
        ),
        ("time,W\n12.5,100\n13.5,100\n", r"line 2: '12\.5' is no time in seconds since the epoch"),
        (f"time,W\n{NOON},100\nnoon,100\n", r"line 3: 'noon' is no time in seconds since the epoch"),
        ("time,W\n20250131120000,100\n", r"line 2: '20250131120000' is no time in milliseconds since the"),
        (f"time,W\n{NOON}000000000,100\n", r"line 2: '\d+' is no time in milliseconds since the epoch"),
        (f"time,W\n{NOON}000,1\n{NOON + 1},1\n", r"line 3: '\d+' is no time in milliseconds since the epoch"),
        (
            "time,W\n1970-01-01T00:00:00Z,100\n",
            r"line 2: time '1970-.*' cannot be: was the meter's clock set\?$",
        ),
        (b"time,W\n2025-01-31T12:00:00Z,1\n\xff,1\n", r"line 3 is not UTF-8: save the file as CSV in UTF-8$"),
        (PLAIN.encode("utf-16"), r"line 1 is not UTF-8"),
        (
            "time,W\n2025-01-31T12:00:00Z," + "1" * 200_000,
            r"line \d is no CSV \(field larger than field limit",
        ),
        ("time,W" + "1" * 200_000, r"the header is no CSV \(field larger than field limit"),
    ],
)
def test_a_fault_is_reported_with_its_line_and_what_would_do(
    tmp_path: Path, text: str | bytes, words: str
) -> None:
    with pytest.raises(MeterError, match=words) as raised:
        read(tmp_path, text)
    assert str(raised.value).startswith(str(tmp_path / "plug.csv"))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MeterError, match=r"none\.csv: cannot be read \(No such file or directory\)$"):
        read_wall_meter(tmp_path / "none.csv")
    with pytest.raises(MeterError, match=re.escape(f"{tmp_path}: cannot be read (Is a directory)")):
        read_wall_meter(tmp_path)


@given(
    milliseconds=st.lists(st.integers(10**12, 4 * 10**12), min_size=2, max_size=6, unique=True).map(sorted),
    watts=st.lists(st.floats(0, 1e5), min_size=6, max_size=6),
    zone_minutes=st.integers(-14 * 60, 14 * 60),
    comma=st.booleans(),
    iso=st.booleans(),
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    milliseconds: list[int],
    watts: list[float],
    zone_minutes: int,
    comma: bool,
    iso: bool,
) -> None:
    zone = timezone(timedelta(minutes=zone_minutes))
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    times = [
        (epoch + timedelta(milliseconds=each)).astimezone(zone).isoformat() if iso else str(each)
        for each in milliseconds
    ]
    rows = [
        f"{time};{value!r}".replace(".", "," if comma and not iso else ".")
        for time, value in zip(times, watts, strict=False)
    ]
    meter = read(tmp_path_factory.mktemp("wall"), "\n".join(["time;W", *rows]))
    assert meter.seconds.tolist() == pytest.approx([each / 1000 for each in milliseconds], abs=1e-6)
    assert meter.watts.tolist() == watts[: len(milliseconds)]


@given(
    raw=st.binary(max_size=60)
    | st.text(max_size=60).map(str.encode)
    | st.lists(st.text(st.sampled_from('0123456789-T:Z.,;e+"\t '), max_size=30), max_size=5).map(
        lambda lines: "\n".join(["time,W", *lines]).encode()
    )
)
def test_whatever_is_read_is_readings_in_order_or_one_clear_fault(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    try:
        meter = read(tmp_path_factory.mktemp("wall"), raw)
    except MeterError:
        return
    assert (meter.seconds[1:] > meter.seconds[:-1]).all()
    assert (meter.watts >= 0).all()
