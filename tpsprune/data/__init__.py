"""Data: where it comes from, how it is split, and how stored inputs become what a model takes."""

from tpsprune.data.loading import load
from tpsprune.data.preparation import Preparation
from tpsprune.data.splits import Dataset, Split

__all__ = ["Dataset", "Preparation", "Split", "load"]
