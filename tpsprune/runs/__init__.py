"""What a run leaves on disk: whole files, flushed journals, one folder per run.

Tensors are in ``tpsprune.runs.tensors``, apart, because they need torch and nothing else here does.
"""

from tpsprune.runs.comparison import Begun, ComparisonFolder
from tpsprune.runs.documents import (
    energy_report_schema,
    energy_report_text,
    read_energy_report,
    read_result,
    result_schema,
    write_result,
)
from tpsprune.runs.files import (
    cannot_write,
    open_regular,
    read_json,
    read_text,
    sync_folder,
    to_json_text,
    write_bytes_atomically,
    write_json_atomically,
    write_text_atomically,
    writing,
)
from tpsprune.runs.folder import RunFolder, digest_of
from tpsprune.runs.journal import Journal
from tpsprune.runs.schemas import first_fault, is_newer
from tpsprune.runs.strict_json import strict_json

__all__ = [
    "Begun",
    "ComparisonFolder",
    "Journal",
    "RunFolder",
    "cannot_write",
    "digest_of",
    "energy_report_schema",
    "energy_report_text",
    "first_fault",
    "is_newer",
    "open_regular",
    "read_energy_report",
    "read_json",
    "read_result",
    "read_text",
    "result_schema",
    "strict_json",
    "sync_folder",
    "to_json_text",
    "write_bytes_atomically",
    "write_json_atomically",
    "write_result",
    "write_text_atomically",
    "writing",
]
