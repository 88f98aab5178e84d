"""Data: where it comes from, how it is split, and how stored inputs become what a model takes."""

from tpsprune.data.dataset import Dataset, Preparation, Split
from tpsprune.data.loading import load

__all__ = ["Dataset", "Preparation", "Split", "load"]
