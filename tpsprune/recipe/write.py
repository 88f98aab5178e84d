"""A recipe as TOML: a ``Recipe`` with its defaults spelled out, and a draft begun for the user.

A run folder keeps the resolved recipe, and its text names the run. A draft is commented, valid, and lists
what else there is. What it offers follows from the sections: a kind of data or model that needs nothing, or
one thing that has no default, is on offer as soon as it is in the unions of ``task``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields
from typing import Any, Final, get_args, get_type_hints

from tpsprune.errors import Fault, RecipeError, did_you_mean
from tpsprune.recipe.prune import Prune
from tpsprune.recipe.schema import Recipe
from tpsprune.recipe.task import FOREIGN_MODELS, Data, Model
from tpsprune.recipe.train import Train


def dumps(recipe: Recipe) -> str:
    """Return the resolved recipe as TOML; reading it again gives an equal recipe.

    Keys stand in the order of the sections' fields, so that equal recipes give equal text.
    """
    return "\n".join(_table(asdict(recipe), ())) + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = [f"{_key(key)} = {as_toml(value)}" for key, value in table.items() if _is_plain(value)]
    if path and (lines or not any(isinstance(value, Mapping) for value in table.values())):
        lines = ["", f"[{'.'.join(_key(part) for part in path)}]", *lines]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += _table(value, (*path, key))
    return lines


def _is_plain(value: Any) -> bool:
    return value is not None and not isinstance(value, Mapping)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _string(key)


def as_toml(value: Any) -> str:
    """Return a value as TOML; a table is written inline.

    >>> as_toml({"macs": 0.5}), as_toml((1, 2)), as_toml(True)
    ('{ macs = 0.5 }', '[1, 2]', 'true')
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(as_toml(item) for item in value)}]"
    if isinstance(value, Mapping):
        items = ", ".join(f"{_key(key)} = {as_toml(item)}" for key, item in value.items())
        return f"{{ {items} }}" if items else "{}"
    return repr(value)


def _string(text: str) -> str:
    # JSON escapes are TOML escapes; DEL, and what else cannot be seen, JSON leaves alone.
    quoted = json.dumps(text, ensure_ascii=False)
    seen = (
        each if each.isprintable() or each == "\N{NO-BREAK SPACE}" else f"\\U{ord(each):08x}"
        for each in quoted
    )
    return quoted if quoted.isprintable() else "".join(seen)


CUSTOM: Final = "custom"
DOTTED: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
GIVES: Final[Mapping[str, str]] = {
    "digits": "grey images",
    "idx": "grey images",
    "image-folder": "images",
    "modular": "tokens",
    "tabular": "vectors",
    "text": "text",
    "iterated": "text",
}
"""What each kind of data is made of; a kind that is not here is not checked beforehand."""
TAKES: Final[Mapping[str, tuple[str, ...]]] = {
    "cnn": ("images", "grey images"),
    "resnet": ("images", "grey images"),
    "mlp": ("images", "grey images", "tokens", "vectors"),
    "transformer": ("tokens",),
    "timm": ("images", "grey images"),
    "torchvision": ("images",),
}
"""What each kind of model takes; a kind that is not here is not checked beforehand."""
ASKS: Final[Mapping[str, str]] = {"text": "path", "tabular": "path:target"}
"""What kinds without a required key are asked for: a file, of a table also the column to predict."""
OF_TRAIN: Final = ("batch_size", "optimizer", "learning_rate", "weight_decay", "schedule")
OF_PRUNE: Final = ("ignored_layers", "round_to", "max_pruning_ratio", "calibration_items", "quality")


@dataclass(frozen=True, slots=True)
class Offer:
    """A kind of data or model: its name, the keys that are asked for (or none), a summary."""

    kind: str
    asks: str
    summary: str
    section: type

    @property
    def form(self) -> str:
        """How an answer that chooses it is written."""
        if self.kind == CUSTOM:
            return "package.module:function"
        return f"{self.kind}:{self.asks.upper()}" if self.asks else self.kind


@dataclass(frozen=True, slots=True)
class Choice:
    """An offer taken, with what it asks for."""

    offer: Offer
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """All that a draft needs. ``target`` is an inline table; with 0 ``epochs`` a trained model is pruned."""

    name: str
    model: Choice
    data: Choice
    target: str
    epochs: int


def _offers(union: Any) -> tuple[Offer, ...]:
    offers = []
    for section in get_args(get_args(union)[0]):
        needed = [item.name for item in fields(section) if _default(item) is MISSING]
        if len(needed) <= 1:
            kind = next(str(item.default) for item in fields(section) if item.name == "kind")
            summary = (section.__doc__ or "").partition("\n")[0].replace("``", "")
            asks = ASKS.get(kind, needed[0] if needed else "")
            offers.append(Offer(kind, asks, summary, section))
    return tuple(offers)


def _default(item: Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


MODELS: Final = _offers(Model)
DATA: Final = _offers(Data)


def choose(answer: str, offers: tuple[Offer, ...], place: str) -> Choice:
    """Return what an answer chooses: ``kind``, ``kind:value``, or the dotted path of a user's callable.

    Raises:
        RecipeError: it is none of these; ``place`` is its option.
    """
    answer = answer.strip()
    kind, _, value = answer.partition(":")
    by_kind = {offer.kind: offer for offer in offers}
    if kind not in by_kind and CUSTOM in by_kind and DOTTED.fullmatch(answer):
        return Choice(by_kind[CUSTOM], answer)
    if kind not in by_kind:
        forms = ", ".join(offer.form for offer in offers)
        raise _fault(place, f"'{answer}' is none of {forms}{did_you_mean(kind, by_kind)}")
    offer = by_kind[kind]
    if bool(value) != bool(offer.asks):
        wanted = "needs more" if offer.asks else "takes nothing after it"
        raise _fault(place, f"'{kind}' {wanted}; expected {offer.form} (found '{answer}')")
    if ":" in offer.asks and value not in _sources(offer) and not all(value.rpartition(":")[::2]):
        ours = ", ".join(f"{kind}:{source}" for source in _sources(offer))
        raise _fault(place, f"'{kind}' needs more; expected {offer.form} or {ours} (found '{answer}')")
    if kind == CUSTOM and not DOTTED.fullmatch(value):
        raise _fault(place, f"'{value}' is no dotted path; expected {offer.form}")
    return Choice(offer, value)


def misfit(model: Choice, data: Choice) -> str:
    """Return why a model cannot take these data, by their kinds alone; empty where nothing does."""
    gives, takes = GIVES.get(data.offer.kind), TAKES.get(model.offer.kind)
    if gives is None or takes is None or gives in takes:
        return ""
    fitting = [kind for kind, welcome in TAKES.items() if gives in welcome] or ["transformers", CUSTOM]
    return (
        f"'{model.offer.kind}' takes {' or '.join(takes)}, '{data.offer.kind}' gives {gives}; "
        f"choose from {', '.join(fitting)}"
    )


def draft(answers: Answers, file: str) -> str:
    """Return a commented recipe; ``file`` is what it will be called, for its comments."""
    only_prunes = answers.epochs == 0
    weights = """\
# Trained weights to begin with: safetensors, a state dict, or package:NAME/path/inside.pth.
# weights = "FILE"
"""
    budget = """\
# 'tpsprune prune' prunes a trained model: none of this is run unless retrain.epochs is raised.
epochs = 1"""
    if not only_prunes:
        budget = f"# The whole budget, before and after the pruning.\nepochs = {answers.epochs}"
    rest = '# Epochs after the pruning: what the draw left of them, or a number.\n# epochs = "rest"'
    if only_prunes:
        rest = "# Epochs of training after the pruning.\nepochs = 0"
    return f"""\
# Begun by 'tpsprune init'. Lines like '# key = value' show defaults: take the '# ' away to change.
# 'tpsprune check {file} --print' shows every section with all of its keys.
name = {as_toml(answers.name)}

{_loss(answers.data)}[task.data]
{_section(answers.data)}
[task.model]
{_section(answers.model)}{weights if issubclass(answers.model.offer.section, FOREIGN_MODELS) else ""}
[train]
{budget}
{_defaults(Train, OF_TRAIN)}
# When the ticket is drawn: once the effective dimension of the layers is at rest, or at the end.
# Other rules: 'epoch', 'patience', 'threshold', 'mask', 'change', 'reopen', 'consensus'.
# [stop.draw]
# rule = "plateau"
# monitor = "d_eff"

[prune]
# What the ticket may cost: macs, params, bytes, latency or joules, as a share of the dense
# model's; tolerance, a share of the consumers' inputs that may be lost; or widths by group.
target = {answers.target}
{_defaults(Prune, OF_PRUNE)}
[retrain]
{rest}
"""


def _section(choice: Choice) -> str:
    offer = choice.offer
    keys = offer.asks.split(":")
    lines = [f"# {offer.summary}", f"kind = {as_toml(offer.kind)}"]
    if choice.value in _sources(offer):
        lines.append(f"source = {as_toml(choice.value)}")
    elif offer.asks:
        values = choice.value.rsplit(":", 1) if len(keys) > 1 else [choice.value]
        lines += [f"{key} = {as_toml(value)}" for key, value in zip(keys, values, strict=True)]
    names = [item.name for item in fields(offer.section) if item.name not in ("kind", *keys)]
    return "\n".join(lines) + "\n" + _defaults(offer.section, names)


def _sources(offer: Offer) -> tuple[str, ...]:
    """Return the data that a kind includes, by name, in place of a file."""
    if offer.kind not in ASKS:
        return ()
    literal, _ = get_args(get_type_hints(offer.section)["source"])
    return get_args(literal)


def _loss(data: Choice) -> str:
    """Return the section of the loss, where it is not classes of images."""
    if GIVES.get(data.offer.kind) == "text":
        return '[task]\nloss = "next-token"\n\n'
    if data.offer.kind not in ASKS:
        return ""
    if data.value == "diabetes":
        return '[task]\nloss = "mse"\n\n'
    return "[task]\n# A target of classes; 'mse' where it is a number.\n# loss = \"cross-entropy\"\n\n"


def _defaults(section: Any, names: Iterable[str]) -> str:
    by_name = {item.name: _default(item) for item in fields(section)}
    return "".join(f"# {name} = {as_toml(by_name[name])}\n" for name in names if by_name[name] is not None)


def _fault(place: str, message: str) -> RecipeError:
    return RecipeError(place, [Fault("", message)])
