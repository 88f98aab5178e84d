"""RAPL counters as Linux shows them: which there are, and whether this process may read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["POWERCAP", "RaplDomain", "find_rapl", "packages_of"]

POWERCAP: Final = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True, kw_only=True)
class RaplDomain:
    """One counter; ``fault`` says in words why it cannot be read, ``denied`` that it is for want of leave."""

    name: str
    path: Path
    fault: str = ""
    denied: bool = False


def find_rapl(
    root: Path = POWERCAP, read: Callable[[Path], str] = lambda path: path.read_text(encoding="ascii")
) -> tuple[RaplDomain, ...]:
    """Return the RAPL domains below ``root`` in order of their folders; none where there is no such folder.

    Each counter is read once with ``read``, since what the mode bits say is not what a container lets
    through. A domain without a counter file is none.
    """
    files = {
        path.resolve(): path
        for pattern in ("intel-rapl*:*/energy_uj", "intel-rapl*/intel-rapl*:*/energy_uj")
        for path in sorted(root.glob(pattern))
    }
    return tuple(_domain(path, read) for path in files.values())


def packages_of(domains: tuple[RaplDomain, ...]) -> tuple[RaplDomain, ...]:
    """Return the domains of whole processors: the others are parts of them, or of the whole platform."""
    return tuple(domain for domain in domains if domain.name.startswith("package"))


def _domain(path: Path, read: Callable[[Path], str]) -> RaplDomain:
    try:
        name = path.with_name("name").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        name = path.parent.name
    try:
        float(read(path))
    except PermissionError as error:
        return RaplDomain(name=name, path=path, fault=error.strerror or "not permitted", denied=True)
    except OSError as error:
        return RaplDomain(name=name, path=path, fault=error.strerror or str(error))
    except ValueError:
        return RaplDomain(name=name, path=path, fault="holds no number")
    return RaplDomain(name=name, path=path)
