"""One trained model, several smaller ones: planned from one look, drawn when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from math import inf
from typing import Any, Final, Literal, TypeAlias, final, get_args

import torch
from torch import Tensor, nn

from tpsprune import measure, pruning
from tpsprune.errors import PruneError, did_you_mean
from tpsprune.loop.extract import Prepared, finish, prepare
from tpsprune.loop.meter import Meter
from tpsprune.loop.replicas import peers_of, tell_extraction
from tpsprune.numerics.forward import fixed_seed
from tpsprune.numerics.peers import ALONE, AbstractPeers
from tpsprune.numerics.trees import take_items
from tpsprune.pruning import Extraction, WidthPlan
from tpsprune.recipe.prune import SHARES, Share

By: TypeAlias = Literal["macs", "params", "bytes", "latency", "joules", "tolerance"]
LIMITS: Final = ("latency_seconds", "parameters", "macs", "bytes")


@torch.inference_mode(False)
def family(
    model: nn.Module,
    calibration_data: Tensor | Iterable[Any],
    sizes: Sequence[float] = (0.75, 0.5, 0.25),
    *,
    by: By = "macs",
    items: Callable[[Any], int] | None = None,
    also: Sequence[Callable[[Any, Any], Any]] = (),
    labels: Sequence[Tensor] | None = None,
    meter: Meter | None = None,
    example: Any = None,
    seed: int = 0,
    replicated: bool | None = None,
    **settings: Any,
) -> Family:
    """Plan several smaller models of a trained one, nested, from one look at it; draw them when asked.

    >>> import torch, tpsprune
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> sizes = tpsprune.family(model, torch.randn(512, 8), sizes=(0.75, 0.5, 0.25), quality="fast")
    >>> [member.ticket[0].out_features for member in sizes]
    [24, 16, 8]
    >>> sizes.pick(parameters=250).macs_share
    0.5

    Args:
        model: as ``tpsprune.extract`` takes it; so are all arguments but the next two.
        sizes: shares, in any order.
        by: what they are shares of: ``macs``, ``params``, ``bytes``, ``latency`` and ``joules`` (measured
            here) or ``tolerance``.

    Returns:
        A family: by size, one after the other from the largest, or by what it may cost. Of a model that
        several processes hold all of them ask for the same: the first one plans, draws and measures.

    Cost: the first half of an extraction; its second half for each size that is asked for.

    Raises:
        PruneError: as ``tpsprune.extract``; of sizes the least that is out of reach, at once.
        ModelError: as ``tpsprune.extract``.
    """
    if by not in SHARES:
        raise PruneError(
            f"by = {by!r}{did_you_mean(str(by), SHARES)}; expected one of {', '.join(get_args(By))}"
        )
    targets = [SHARES[by](size) for size in dict.fromkeys(sizes)]
    if not targets:
        raise PruneError("sizes: at least one is needed, as in sizes=(0.75, 0.5, 0.25)")
    peers = peers_of([model], replicated, "family")
    prepared = peers.together(
        lambda: prepare(
            model, calibration_data, targets[0], settings, items, also, labels, seed, meter, example, peers
        )
    )
    return Family(prepared, targets, peers)


@final
class Family:
    """The sizes of one model: ``family[0.5]`` is an extraction, drawn on first use and kept.

    ``sizes`` are in the order of the plans, the largest model first; iterating draws all of them. Each
    smaller one has some of the units of the next larger one.
    """

    def __init__(self, prepared: Prepared, targets: Sequence[Share], peers: AbstractPeers = ALONE) -> None:
        self._prepared, self._peers = prepared, peers
        self._plans: dict[float, WidthPlan] = {}
        """The first process's; the others know the sizes."""
        self._kind: type[Share] = SHARES[
            next(each for each in SHARES if hasattr(prepared.settings.target, each))
        ]
        self._drawn: dict[float, Extraction] = {}
        self._sizes: tuple[float, ...] = tuple(peers.first(lambda: self._plan(targets)))

    @property
    def sizes(self) -> tuple[float, ...]:
        """The shares that were asked for, of the largest model first."""
        return self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[Extraction]:
        return (self[size] for size in self.sizes)

    @torch.inference_mode(False)
    def __getitem__(self, size: float) -> Extraction:
        """Return the extraction of a size, drawn if it is not yet.

        Raises:
            KeyError: it is not among ``sizes``.
            PruneError: its ticket failed its verification.
            PeersError: another process that holds the model does not ask for it.
        """
        if size not in self._sizes:
            raise KeyError(f"size {size!r}: there are {', '.join(map(str, self.sizes))}")
        if size not in self._drawn:
            self._peers.meet(f"family[{size:g}]")
            self._drawn[size] = tell_extraction(
                self._peers, self._prepared.model, lambda: self._draw(self._plans[size])
            )
        return self._drawn[size]

    def _draw(self, plan: WidthPlan) -> Extraction:
        given = self._prepared
        settings = replace(given.settings, target=plan.target)
        clock = given.inputs.get("clock")
        return finish(pruning.draw(given.model, given.batches, settings, plan, clock=clock), given)

    @torch.inference_mode(False)
    def add(self, *sizes: float) -> None:
        """Plan further sizes, nested with those that there are, without a second look.

        Raises:
            PruneError: a size is no share, or out of reach; the family is as it was then.
        """
        self._peers.meet(f"family.add({', '.join(map(str, sizes))})")
        self._sizes = tuple(self._peers.first(lambda: self._plan([self._kind(each) for each in sizes])))

    def _plan(self, targets: Sequence[Share]) -> list[float]:
        """Plan sizes, from the look if there was one; return all that there are, largest first."""
        given, kind = self._prepared, self._kind
        known = {kind(share): plan.width_of for share, plan in self._plans.items()}
        plans = pruning.plan_sizes(
            given.model,
            given.batches,
            given.settings,
            [each for each in targets if each not in known],
            **given.inputs,
            look=next(iter(self._plans.values()), None),
            known=known,
        )
        self._plans |= {_share(plan): plan for plan in plans}
        of_size = {share: pruning.order_of_size(kind(share)) for share in self._plans}
        return sorted(of_size, key=of_size.__getitem__)[::-1]

    def pick(
        self,
        *,
        latency_seconds: float = inf,
        batch_items: int = 1,
        parameters: float = inf,
        macs: float = inf,
        bytes: float = inf,  # noqa: A002 - the unit is the name
    ) -> Extraction:
        """Return the largest size that costs no more than this; only that one is drawn.

        Args:
            latency_seconds: median time of a forward pass on the model's device, measured now.
            batch_items: copies of the first item that it is measured on.
            parameters: of the model.
            macs: multiply-accumulates of an item.
            bytes: of its state dict as safetensors.

        Raises:
            PruneError: no size is within; the message has what the smallest takes.
        """
        limits = dict(zip(LIMITS, (latency_seconds, parameters, macs, bytes), strict=True))
        asked = {name: limit for name, limit in limits.items() if limit < inf}
        if not asked:
            raise PruneError(f"pick needs a limit: {', '.join(LIMITS)}")
        self._peers.meet("family.pick")
        return self[self._peers.first(lambda: self._largest_within(asked, batch_items))]

    def _largest_within(self, asked: Mapping[str, float], batch_items: int) -> float:
        found: dict[str, float] = {}
        for size in self.sizes:
            found = self._costs(size, batch_items, timed="latency_seconds" in asked)
            if all(found[name] <= limit for name, limit in asked.items()):
                return size
        least = ", ".join(f"{name} {found[name]:.4g} for {limit:.4g}" for name, limit in asked.items())
        raise PruneError(f"no size is within: the smallest, {self.sizes[-1]:g}, takes {least}")

    def _costs(self, size: float, batch_items: int, *, timed: bool) -> dict[str, float]:
        """Return what a size takes: of a model of its shape, for that does not depend on its weights."""
        given = self._prepared
        shell = pruning.shell_of(given.model, self._plans[size])
        with fixed_seed():
            counted = asdict(measure.size(shell, given.batches[0]))
            if timed:
                copies = torch.zeros(batch_items, dtype=torch.int64)
                batch = take_items(given.batches[0], copies)
                counted["latency_seconds"] = measure.batch_latency(shell, batch).median_seconds
        return counted


def _share(plan: WidthPlan) -> float:
    target: Any = plan.target
    share: float = target.share
    return share
