"""Text that every Python carries: its help topics, and the docstrings of its standard library."""

from __future__ import annotations

import importlib
import inspect
import pkgutil


def help_topics() -> tuple[list[str], list[str]]:
    """Return the first paragraph of each of Python's help topics, and what follows it."""
    from pydoc_data.topics import topics

    queries, documents = [], []
    for name in sorted(topics):
        paragraphs = [" ".join(each.split()) for each in topics[name].split("\n\n")]
        paragraphs = [each for each in paragraphs if len(each) > 60]
        if len(paragraphs) > 1:
            queries.append(paragraphs[0])
            documents.append(" ".join(paragraphs[1:]))
    return queries, documents


def docstrings() -> list[str]:
    """Return docstrings of the standard library's pure modules, in order, each once."""
    names = ("argparse", "collections", "datetime", "email", "functools", "http.client", "json", "logging")
    names += ("os", "pathlib", "random", "shutil", "socket", "statistics", "string", "subprocess", "tarfile")
    names += ("tempfile", "textwrap", "threading", "typing", "unittest", "urllib.parse", "zipfile", "decimal")
    names += ("fractions", "asyncio", "ast", "calendar", "configparser", "csv", "difflib", "dis", "heapq")
    found: dict[str, None] = {}
    for name in names:
        module = importlib.import_module(name)
        parts = [module.__name__]
        if hasattr(module, "__path__"):
            parts += [f"{name}.{each.name}" for each in pkgutil.iter_modules(module.__path__)]
        for part in parts:
            if part.endswith("__main__") or "windows" in part:
                continue
            for _, value in sorted(
                inspect.getmembers(importlib.import_module(part)), key=lambda pair: pair[0]
            ):
                for each in (value, *(vars(value).values() if inspect.isclass(value) else ())):
                    text = getattr(each, "__doc__", None)
                    if isinstance(text, str) and len(text) > 60:
                        found[" ".join(text.split())] = None
    return list(found)
