"""scikit-learn's handwritten digits: 1,797 grey images of 8×8 pixels, always at hand.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, 1998 (its test part, as scikit-learn ships it).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from tpsprune.data.images import image_dataset
from tpsprune.data.splits import Dataset, Split, parted, require_every_class, stratified_order
from tpsprune.errors import DataError
from tpsprune.recipe.task import DigitsData

__all__ = ["digits", "digits_dataset"]

GREY_STEP = 15
CLASSES = 10


def digits() -> Split:
    """Return all digits: inputs (1797, 1, 8, 8) uint8 and labels.

    The 17 shades 0..16 become 0, 15, …, 240: exact multiples, so nothing is rounded away.

    Raises:
        DataError: scikit-learn is not installed whole.
    """
    # Importing sklearn.datasets takes seconds, its table milliseconds.
    package = find_spec("sklearn")
    home = Path(package.origin).parent if package is not None and package.origin else Path()
    path = home / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise DataError(
            "task.data: scikit-learn's digits.csv.gz is not there; `pip install scikit-learn` would do"
        )
    table = torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.uint8))
    images = table[:, :64].reshape(-1, 1, 8, 8) * GREY_STEP
    return Split(images, table[:, 64].to(torch.int64))


def digits_dataset(data: DigitsData) -> Dataset:
    """Return the digits, test and validation drawn off by class with ``split_seed``.

    Both shares are of all 1,797 digits.

    Raises:
        DataError: the shares leave a split without some class.
    """
    if data.validation_share + data.test_share >= 1:
        raise DataError(
            f"task.data: validation_share {data.validation_share:g} and test_share {data.test_share:g} "
            "leave nothing to train on; shares that sum to less than 1 would do"
        )
    generator = torch.Generator().manual_seed(data.split_seed)
    everything = digits()
    order = stratified_order(everything.labels, generator)
    pool, test = parted(everything, order, data.test_share, "task.data.test_share")
    require_every_class(test, "test", everything, "task.data.test_share")
    return image_dataset(
        "digits",
        pool,
        test,
        classes=CLASSES,
        validation_share=data.validation_share / (1 - data.test_share),
        train_limit=None,
        augment=data.augment,
        generator=generator,
    )
