"""Crops of the photographs that ordinary packages carry: what an image model is tried on without ImageNet.

Shape letters: n images, h height, w width.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

SMALLEST: Final = 300
# Charts, masks, microscopy and test patterns are no photographs.
SKIPPED: Final = {
    *("logo", "color", "ihc", "phantom", "horse", "page", "text", "cell", "moon", "clock_motion"),
}


def photographs(more: Sequence[Path] = ()) -> list[Tensor]:
    """Return every colour photograph at hand as (3, h, w) uint8, sorted by file name.

    Those of scikit-learn, of scikit-image where it is installed, and of the folders ``more``; none of less
    than 300 pixels a side.
    """
    folders = [_inside("sklearn", "datasets/images"), _inside("skimage", "data"), *more]
    files = {
        path.name: path
        for folder in folders
        if folder is not None
        for path in folder.glob("*")
        if path.suffix in {".png", ".jpg"} and path.stem not in SKIPPED
    }
    images = [Image.open(files[name]) for name in sorted(files)]
    wanted = [image for image in images if image.mode in {"RGB", "RGBA"} and min(image.size) >= SMALLEST]
    return [torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) for image in wanted]


def crops(photos: Sequence[Tensor], count: int, seed: int, half: int, side: int = 224) -> Tensor:
    """Return ``count`` crops (n, 3, side, side), scaled to (x − 127) / 128, of one half of each photograph.

    ``half`` 0 is the left one, 1 the right: what a model is fitted on and what it is tried on never share
    a pixel, though they share photographs. A crop's side is drawn between half and the whole of what there
    is, then scaled; one in two is mirrored.
    """
    generator = torch.Generator().manual_seed(seed)
    taken = []
    for number in range(count):
        photo = photos[number % len(photos)]
        middle = photo.shape[2] // 2
        part = photo[:, :, :middle] if half == 0 else photo[:, :, middle:]
        whole = min(part.shape[1:])
        extent = int(whole * (0.5 + 0.5 * torch.rand((), generator=generator).item()))
        top = int(torch.randint(part.shape[1] - extent + 1, (), generator=generator))
        left = int(torch.randint(part.shape[2] - extent + 1, (), generator=generator))
        crop = part[None, :, top : top + extent, left : left + extent].float()
        crop = functional.interpolate(crop, (side, side), mode="bilinear", antialias=True)
        mirrored = torch.rand((), generator=generator).item() < 0.5
        taken.append(crop.flip(-1) if mirrored else crop)
    return (torch.cat(taken) - 127) / 128


def _inside(package: str, folder: str) -> Path | None:
    spec = find_spec(package)
    return Path(spec.origin).parent / folder if spec is not None and spec.origin else None
