"""Writes the JSON schemas of the records into the wheel, as ``tpsprune/schemas/NAME.schema.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class SchemaHook(BuildHookInterface):  # type: ignore[misc,type-arg]
    """Adds one file for each of ``tpsprune.records.DOCUMENTS``; the types alone say what is in it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 -- hatchling's
        """Write the schemas beside the build, and have them put into the wheel."""
        sys.path.insert(0, self.root)
        from tpsprune.records import DOCUMENTS, json_schema

        folder = Path(mkdtemp(prefix="tpsprune-schemas-"))
        for name, kind in DOCUMENTS.items():
            file = folder / f"{name}.schema.json"
            text = json.dumps(json_schema(kind), indent=2, ensure_ascii=False) + "\n"
            file.write_text(text, encoding="utf-8")
            build_data["force_include"][str(file)] = f"tpsprune/schemas/{file.name}"
