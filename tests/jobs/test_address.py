"""How workers are named: every malformed name is told what is missing."""

from __future__ import annotations

import pytest

from tpsprune.errors import WorkerError
from tpsprune.jobs.address import Address, parse_address


@pytest.mark.parametrize(
    ("text", "url", "workers"),
    [
        ("dask:local:2", "", 2),
        ("dask:tcp://node7:8786", "tcp://node7:8786", 0),
        ("dask:tcp://10.0.0.7:1", "tcp://10.0.0.7:1", 0),
        ("dask:tls://[::1]:65535", "tls://[::1]:65535", 0),
    ],
)
def test_an_address_is_read(text: str, url: str, workers: int) -> None:
    assert parse_address(text) == Address(text, url=url, workers=workers)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dask:lokal:2", r"names no workers \(did you mean 'dask:local:2'\?\)"),
        ("dsk:tcp://h:1", r"did you mean 'dask:tcp://h:1'"),
        ("tcp://node7:8786", r"did you mean 'dask:tcp://node7:8786'"),
        ("dask:node7:8786", r"did you mean 'dask:tcp://node7:8786'"),
        ("two", "'two' names no workers: expected dask:tcp"),
        ("", "'' names no workers"),
        ("dask:local", "how many workers, as in dask:local:2"),
        ("dask:local:0", "how many workers"),
        ("dask:local:1025", "how many workers"),
        ("dask:local:٣", "how many workers"),
        ("dask:tcp://node7", "host and port of a scheduler, as in dask:tcp://HOST:8786"),
        ("dask:tcp:node7:8786", "host and port"),
        ("dask:tcp://node7:0", "host and port"),
        ("dask:tcp://node7:65536", "host and port"),
        ("dask:tls://node7:8786/x", "as in dask:tls://HOST:8786"),
    ],
)
def test_what_is_none_is_told_what_is_missing(text: str, message: str) -> None:
    with pytest.raises(WorkerError, match=message):
        parse_address(text)
