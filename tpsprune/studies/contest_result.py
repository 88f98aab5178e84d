"""What a contest came to: each arm's settings, its trainings, and how it compares, pair by pair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tpsprune.numerics.small_samples import Interval, ratio_interval
from tpsprune.studies.contest import Arm, Contest, Settings, Size, Trained, Trial, pairs, race
from tpsprune.studies.figures import count, cpu_seconds
from tpsprune.studies.finding import Plan, Table
from tpsprune.studies.verdict import Bound

__all__ = [
    "Comparison",
    "Entry",
    "by_trial",
    "champion",
    "compare",
    "entries",
    "opponent",
    "pair_table",
    "plan_contest",
    "settings_table",
    "settings_words",
    "steps_words",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An arm after the contest: the settings it won its race with, and its trainings in order of seed.

    ``pilot_steps`` are summed over the pilot seeds, none where it never got there.
    """

    arm: Arm
    chosen: Settings
    pilot_steps: int | None
    trainings: tuple[Trained, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How many times an opponent's steps and processor seconds are an arm's, over pairs of seeds."""

    steps: Interval
    seconds: Interval
    bound: Bound


def by_trial(done: Sequence[Trained]) -> dict[Trial, Trained]:
    """Return trainings by what they were; of two alike the one that was done first."""
    return {trained.trial: trained for trained in reversed(done)}


def plan_contest(contest: Contest, size: Size, done: Mapping[Trial, Trained]) -> Plan:
    """Return a contest's trainings as far as they are known: races arm by arm, then the comparison."""
    races = {arm.name: race(contest, arm, size, done) for arm in contest.arms}
    trials = [trial for each in races.values() for trial in each.trials]
    chosen = {name: each.chosen for name, each in races.items() if each.chosen is not None}
    if len(chosen) == len(contest.arms):
        return Plan((*trials, *pairs(contest, chosen, size)))
    known = [trial.arm for trial in trials if trial not in done]
    later = [
        f"{contest.task}, {name}"
        for name, each in races.items()
        for _ in range(each.left * size.pilot_seeds + size.seeds)
    ]
    for arm in known:
        later.remove(arm)
    return Plan(tuple(trials), tuple(later))


def entries(contest: Contest, size: Size, done: Mapping[Trial, Trained]) -> tuple[Entry, ...]:
    """Return every arm of a contest whose trainings are all done."""
    races = {arm.name: race(contest, arm, size, done) for arm in contest.arms}
    chosen = {name: each.chosen for name, each in races.items() if each.chosen is not None}
    compared = list(pairs(contest, chosen, size))
    return tuple(
        Entry(
            arm=arm,
            chosen=chosen[arm.name],
            pilot_steps=_pilot_steps(races[arm.name].trials, chosen[arm.name], size, done),
            trainings=tuple(done[trial] for trial in compared if trial.name == arm.name),
        )
        for arm in contest.arms
    )


def _pilot_steps(
    trials: Sequence[Trial], chosen: Settings, size: Size, done: Mapping[Trial, Trained]
) -> int | None:
    played = [done[trial] for trial in trials if trial.settings == chosen]
    whole = len(played) == size.pilot_seeds and all(trained.reached for trained in played)
    return sum(trained.steps for trained in played) if whole else None


def opponent(found: Sequence[Entry]) -> Entry:
    """Return what to beat: the arm without TPS that was fastest on the pilot seeds."""
    return _fastest([entry for entry in found if entry.arm.variant == "none"])


def champion(found: Sequence[Entry]) -> Entry:
    """Return the arm with TPS that was fastest on the pilot seeds; no pair has a say in it."""
    return _fastest([entry for entry in found if entry.arm.variant != "none"])


def _fastest(found: Sequence[Entry]) -> Entry:
    return min(found, key=lambda entry: (entry.pilot_steps is None, entry.pilot_steps or 0))


def compare(against: Entry, entry: Entry) -> Comparison:
    """Return the ratios opponent / arm; a training that never got there counts with what it was given."""
    couples = list(zip(against.trainings, entry.trainings, strict=True))
    return Comparison(
        steps=ratio_interval((other.steps, own.steps) for other, own in couples),
        seconds=ratio_interval((other.cpu_seconds, own.cpu_seconds) for other, own in couples),
        bound=Bound(
            may_be_larger=any(not other.reached for other, _ in couples),
            may_be_smaller=any(not own.reached for _, own in couples),
        ),
    )


def settings_words(settings: Settings) -> str:
    """Return settings in short: learning rate, weight decay, and λ or gain if there is one.

    >>> settings_words(Settings(learning_rate=0.1, weight_decay=2.0, strength=10.0))
    'lr 0.1 wd 2 λ 10'
    """
    words = f"lr {settings.learning_rate:g} wd {settings.weight_decay:g}"
    return f"{words} λ {settings.strength:g}" if settings.strength else words


def steps_words(trained: Trained) -> str:
    """Return the steps a training took, with ``>`` before those of one that was given up."""
    return count(trained.steps) if trained.reached else f"> {count(trained.steps)}"


def settings_table(title: str, found: Sequence[Entry]) -> Table:
    """Return what each arm was tuned to, and where that lies at the end of a list."""
    return Table(
        title=title,
        columns=("arm", "learning rate", "weight decay", "λ or gain", "tried", "pilot steps", "at an edge"),
        rows=tuple(
            (
                entry.arm.name,
                f"{entry.chosen.learning_rate:g}",
                f"{entry.chosen.weight_decay:g}",
                f"{entry.chosen.strength:g}" if entry.chosen.strength else "",
                str(entry.arm.size),
                "never" if entry.pilot_steps is None else count(entry.pilot_steps),
                ", ".join(entry.arm.edges(entry.chosen)),
            )
            for entry in found
        ),
    )


def pair_table(title: str, found: Sequence[Entry]) -> Table:
    """Return steps and processor seconds of every arm on every seed."""
    return Table(title=title, columns=_columns(found), rows=tuple(_rows(found)))


def _columns(found: Sequence[Entry]) -> tuple[str, ...]:
    seeds = [str(trained.trial.seed) for trained in found[0].trainings]
    return ("arm", *(f"steps, seed {seed}" for seed in seeds), "CPU-s, mean", "of it TPS")


def _rows(found: Sequence[Entry]) -> Iterator[tuple[str, ...]]:
    for entry in found:
        whole = sum(trained.cpu_seconds for trained in entry.trainings)
        own = sum(trained.tps_cpu_seconds for trained in entry.trainings)
        yield (
            entry.arm.name,
            *(steps_words(trained) for trained in entry.trainings),
            cpu_seconds(whole / len(entry.trainings)),
            f"{own / whole:.0%}" if own else "",
        )
