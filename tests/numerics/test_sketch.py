from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tpsprune.numerics.sketch import signed_fold


def tensors(generator: torch.Generator) -> list[Tensor]:
    return [torch.randn(shape, generator=generator) for shape in [(7,), (30, 40), (1,), (5, 5, 3), (64,)]]


def slow_fold(parts: list[Tensor], seed: int, size: int, buckets: int) -> Tensor:
    flat = torch.cat([part.reshape(-1) for part in parts])
    rows = -(-len(flat) // buckets)
    generator = torch.Generator().manual_seed(seed)
    row_signs = torch.randint(0, 2, (rows + 1,), generator=generator) * 2 - 1
    bucket_signs = torch.randint(0, 2, (buckets,), generator=generator) * 2 - 1
    sketch = torch.zeros(size)
    for index, value in enumerate(flat.tolist()):
        row, bucket = divmod(index, buckets)
        sketch[bucket % size] += row_signs[row] * bucket_signs[bucket] * value
    return sketch


@pytest.mark.parametrize("buckets", [8, 64, 512, 4096])
def test_the_fold_equals_one_coordinate_at_a_time(buckets: int, generator: torch.Generator) -> None:
    parts = tensors(generator)
    found = signed_fold(parts, seed=3, size=8, buckets=buckets)
    torch.testing.assert_close(found, slow_fold(parts, 3, 8, buckets), rtol=1e-4, atol=1e-4)


def test_the_sketch_of_a_difference_is_the_difference_of_sketches(generator: torch.Generator) -> None:
    one, two = tensors(generator), tensors(generator)
    difference = [a - b for a, b in zip(one, two, strict=True)]
    torch.testing.assert_close(
        signed_fold(difference, seed=0, size=16, buckets=64),
        signed_fold(one, seed=0, size=16, buckets=64) - signed_fold(two, seed=0, size=16, buckets=64),
        rtol=1e-4,
        atol=1e-4,
    )


def test_inner_products_are_kept_on_average(generator: torch.Generator) -> None:
    x = torch.randn(500, generator=generator)
    y = x + torch.randn(500, generator=generator)
    products = torch.stack(
        [
            signed_fold([x], seed=seed, size=32, buckets=128)
            @ signed_fold([y], seed=seed, size=32, buckets=128)
            for seed in range(600)
        ]
    )
    error = products.std() / 600**0.5
    assert abs(products.mean() - x @ y) < 4 * error


def test_lengths_err_by_a_few_percent_at_the_default_size(generator: torch.Generator) -> None:
    parts = [torch.randn(1_100_000, generator=generator), torch.randn(300, 70, generator=generator)]
    length = torch.cat([part.reshape(-1) for part in parts]).norm()
    assert float(signed_fold(parts, seed=0).norm() / length) == pytest.approx(1.0, abs=0.05)
