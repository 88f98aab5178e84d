"""The jobs of the command line, each one readable function: what is done, in which order."""

from tpsprune.loop.extract import extract
from tpsprune.pipeline.compare import compare
from tpsprune.pipeline.export import FORMATS, export, export_steps
from tpsprune.pipeline.family import family
from tpsprune.pipeline.fidelity import fidelity, fidelity_for_report
from tpsprune.pipeline.load import load
from tpsprune.pipeline.machines import compare_on_machines
from tpsprune.pipeline.prune import check, prune, prune_dry
from tpsprune.pipeline.repair import repair
from tpsprune.pipeline.save import save
from tpsprune.pipeline.train import train
from tpsprune.pipeline.transfer import transfer

__all__ = [
    "FORMATS",
    "check",
    "compare",
    "compare_on_machines",
    "export",
    "export_steps",
    "extract",
    "family",
    "fidelity",
    "fidelity_for_report",
    "load",
    "prune",
    "prune_dry",
    "repair",
    "save",
    "train",
    "transfer",
]
