"""How a user names the workers of a cluster: ``dask:tcp://HOST:PORT`` or ``dask:local:N``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from tpsprune.errors import WorkerError, did_you_mean

KINDS: Final = ("tcp", "tls", "local")
EXAMPLES: Final = "dask:tcp://HOST:8786 or dask:local:2"
MOST_WORKERS: Final = 1024
_SCHEDULER: Final = re.compile(r"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})")


@dataclass(frozen=True, slots=True)
class Address:
    """Where jobs go: to the scheduler at ``url``, or to so many workers in this process."""

    text: str
    url: str = ""
    workers: int = 0


def parse_address(text: str) -> Address:
    """Return the address that a text names.

    Raises:
        WorkerError: it names none; the message says what is missing, and what may have been meant.

    >>> parse_address("dask:local:2").workers, parse_address("dask:tcp://node7:8786").url
    (2, 'tcp://node7:8786')
    """
    scheme, _, place = text.partition(":")
    kind, separator, rest = place.partition(":")
    if scheme != "dask" or kind not in KINDS:
        meant = [f"dask:{each}:{rest}" for each in KINDS] if separator else []
        meant.append(f"dask:tcp://{place}" if scheme == "dask" else f"dask:{text}")
        near = did_you_mean(text, meant)
        raise WorkerError(f"'{text}' names no workers{near}: expected {EXAMPLES}")
    if kind == "local":
        if not re.fullmatch(r"[0-9]{1,4}", rest) or not 1 <= int(rest) <= MOST_WORKERS:
            raise WorkerError(f"'{text}': expected how many workers, as in dask:local:2")
        return Address(text, workers=int(rest))
    found = _SCHEDULER.fullmatch(rest.removeprefix("//"))
    if not separator or not rest.startswith("//") or not found or not 1 <= int(found[1]) <= 65535:
        raise WorkerError(f"'{text}': expected host and port of a scheduler, as in dask:{kind}://HOST:8786")
    return Address(text, url=f"{kind}:{rest}")
