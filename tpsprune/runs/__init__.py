"""What a run leaves on disk: whole files, flushed journals, one folder per run.

Tensors are in ``tpsprune.runs.tensors``, apart, because they need torch and nothing else here does.
"""

from tpsprune.records.strict import open_regular, read_bytes, strict_json
from tpsprune.runs.comparison import Begun, ComparisonFolder, begin_or_match, request_pairs
from tpsprune.runs.files import (
    Journal,
    beside,
    cannot_write,
    energy_report_text,
    read_energy_report,
    read_fidelity,
    read_json,
    read_result,
    read_text,
    sweep,
    sync_folder,
    to_json_text,
    write_bytes_atomically,
    write_json_atomically,
    write_result,
    write_text_atomically,
    writing,
)
from tpsprune.runs.folder import RunFolder, digest_of, exclusive, machine_facts, versions

__all__ = [
    "Begun",
    "ComparisonFolder",
    "Journal",
    "RunFolder",
    "begin_or_match",
    "beside",
    "cannot_write",
    "digest_of",
    "energy_report_text",
    "exclusive",
    "machine_facts",
    "open_regular",
    "read_bytes",
    "read_energy_report",
    "read_fidelity",
    "read_json",
    "read_result",
    "read_text",
    "request_pairs",
    "strict_json",
    "sweep",
    "sync_folder",
    "to_json_text",
    "versions",
    "write_bytes_atomically",
    "write_json_atomically",
    "write_result",
    "write_text_atomically",
    "writing",
]
