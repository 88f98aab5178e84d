"""A bounded sample of the rows that modules are fed, streamed.

Shape letters: r rows, s sampled rows, n units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from tpsprune.numerics.forward import call_model, evaluation_mode, observe_inputs
from tpsprune.numerics.moments import CONVOLUTIONS, as_rows

ROWS: Final = 1024
"""Rows whose distances to one another are still a matter of milliseconds."""


@final
class RowSample:
    """At most ``at_most`` of the rows added, each as likely as any other; equal calls give equal samples.

    Each row is given a random number, and those with the lowest stay: nothing need be known of what comes.
    """

    def __init__(self, at_most: int) -> None:
        self.at_most = at_most
        self._generator = torch.Generator().manual_seed(0)
        self._number_s = torch.empty(0)
        self._rows: Tensor | None = None

    def add(self, rows_rn: Tensor) -> None:
        """Take in rows."""
        number_r = torch.rand(len(rows_rn), generator=self._generator)
        if self._rows is None:
            self._rows = rows_rn[:0].detach()
        number = torch.cat([self._number_s, number_r])
        held = len(self._number_s)
        kept = number.argsort(stable=True)[: self.at_most].sort().values
        old, new = kept[kept < held], kept[kept >= held] - held
        self._rows = torch.cat([self._rows[old.to(rows_rn.device)], rows_rn[new.to(rows_rn.device)].detach()])
        self._number_s = number[kept]

    @property
    def rows_sn(self) -> Tensor | None:
        """The sample, in the order in which rows came; none before the first."""
        return self._rows


def input_rows(
    model: nn.Module,
    batches: Iterable[Any],
    widths: Mapping[str, int],
    blocks: Mapping[str, int],
    at_most: int = ROWS,
) -> dict[str, Tensor]:
    """Return a sample of the rows of the input of each module named in ``widths``, its unit count.

    One forward pass per batch, in evaluation mode and without gradients. A row is an item, of a sequence or a
    map an item's position (``as_rows``, with the ``blocks`` of modules that have one). A module called
    several times adds up its calls; one that no pass calls is left out. Equal models and batches give the
    same rows. Memory: ``at_most`` rows a module.

    Raises:
        ValueError: an input does not hold the units that ``widths`` promises.
    """
    samples = {name: RowSample(at_most) for name in widths}

    def add(name: str, inputs: Tensor) -> None:
        channels_first = isinstance(model.get_submodule(name), CONVOLUTIONS)
        width, block = widths[name], blocks.get(name)
        samples[name].add(as_rows(inputs, width, channels_first=channels_first, block=block))

    with torch.no_grad(), evaluation_mode(model), observe_inputs(model, widths, add):
        for batch in batches:
            call_model(model, batch)
    return {name: each.rows_sn for name, each in samples.items() if each.rows_sn is not None}
