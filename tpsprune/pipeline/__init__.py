"""The hall: the order in which rooms are visited, one readable function a job."""

from tpsprune.pipeline.check import check
from tpsprune.pipeline.load import Exported, export, load
from tpsprune.pipeline.train import train

__all__ = ["Exported", "check", "export", "load", "train"]
