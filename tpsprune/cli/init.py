"""``tpsprune init``: five questions, and a commented recipe for the user's own model."""

from __future__ import annotations

import os
import shlex
import sys
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from tpsprune.cli.options import target_override
from tpsprune.errors import Fault, RecipeError, TpspruneError

if TYPE_CHECKING:
    from tpsprune.recipe.write import Choice


T = TypeVar("T")

QUESTIONS: Final = {
    "model": "Which model",
    "data": "Which data",
    "target": "What may the smaller model cost (a share of the dense one)",
    "epochs": "How many epochs of training (0: it is trained already, only prune)",
    "name": "What is the recipe called",
}
USUAL: Final = {"model": "cnn", "data": "digits", "target": "macs=0.5", "epochs": "10", "name": "my-model"}


@click.command(
    short_help="A recipe for your own model, commented.",
    epilog="""\b
Examples:
  tpsprune init                            # asks five questions
  tpsprune init --model my_nets:make --data my_data:load --target macs=0.5 --epochs 20 --name mine
  tpsprune init --model timm:vit_tiny_patch16_224 --data image-folder:photos --target params=0.4 \\
    --epochs 0 --name photos

\b
Models: cnn, resnet, mlp, transformer, timm:NAME, torchvision:NAME, transformers:ARCHITECTURE, or
the dotted path of a callable of your own, package.module:function. Data: digits, idx:FOLDER,
image-folder:PATH, modular and more, or a dotted path; 'tpsprune init' lists them all.
""",
)
@click.option("--model", metavar="KIND[:NAME]", help="The model, or package.module:function.")
@click.option("--data", metavar="KIND[:PATH]", help="The data, or package.module:function.")
@click.option("--target", metavar="KIND=VALUE", help="What to reach, as of 'tpsprune prune': macs=0.5.")
@click.option("--epochs", metavar="N", help="The whole budget of training; 0 is only to prune.")
@click.option("--name", help="Lower-case letters, digits and hyphens; it names the runs too.")
@click.option(
    "--file", type=click.Path(path_type=Path), help="Where to write the recipe.  [default: NAME.toml]"
)
def init(
    model: str | None,
    data: str | None,
    target: str | None,
    epochs: str | None,
    name: str | None,
    file: Path | None,
) -> None:
    """Write a commented recipe that 'tpsprune check' accepts; questions stand for missing options."""
    from tpsprune import recipe
    from tpsprune.recipe.write import Answers, draft, misfit
    from tpsprune.runs import write_text_atomically

    options = {"model": model, "data": data, "target": target, "epochs": epochs, "name": name}
    missing = [key for key, value in options.items() if value is None]
    if missing and not sys.stdin.isatty():
        missing_options = ", ".join(f"--{key}" for key in missing)
        raise click.UsageError(
            f"no questions can be asked here (standard input is no terminal): give {missing_options}"
        )
    found = _read_options({key: value for key, value in options.items() if value is not None})
    for key in missing:
        found[key] = _ask(key)
    answers = Answers(**found)
    if reason := misfit(answers.model, answers.data):
        raise RecipeError("--model and --data", [Fault("", reason)])
    path = file or Path(f"{answers.name}.toml")
    if os.path.lexists(path):
        raise RecipeError(str(path), [Fault("", "is there already: use another --name or --file")])
    text = draft(answers, shlex.quote(str(path)))
    recipe.parse(text, str(path))
    write_text_atomically(path, text)
    command = "train" if answers.epochs else "prune"
    weights = "" if answers.epochs else " --weights MODEL.safetensors"
    click.echo(f"Recipe: {path}\nNext:")
    click.echo(f"  tpsprune check {shlex.quote(str(path))}")
    click.echo(f"  tpsprune {command} {shlex.quote(str(path))}{weights}")


def _read_options(options: dict[str, str]) -> dict[str, Any]:
    """Return the values of the options; every fault among them is reported at once."""
    found: dict[str, Any] = {}
    faults: list[Fault] = []
    for key, text in options.items():
        try:
            found[key] = _READ[key](text)
        except (click.UsageError, TpspruneError) as error:
            faults.append(Fault(f"--{key}", _message(error)))
    if faults:
        raise RecipeError("tpsprune init", faults)
    return found


def _ask(key: str) -> Any:
    """Ask until the answer is one; what there is to choose from is shown first."""
    from tpsprune.recipe.write import DATA, MODELS

    for offer in {"model": MODELS, "data": DATA}.get(key, ()):
        indent = f"  {offer.form:<26} "
        click.echo(
            click.wrap_text(offer.summary, 80, initial_indent=indent, subsequent_indent=" " * len(indent))
        )
    return click.prompt(QUESTIONS[key], default=USUAL[key], value_proc=_for_click(_READ[key]))


def _for_click(read: Callable[[str], T]) -> Callable[[str], T]:
    def read_value(text: str) -> T:
        try:
            return read(text)
        except (click.UsageError, TpspruneError) as error:
            raise click.UsageError(_message(error)) from error

    return read_value


def _message(error: click.UsageError | TpspruneError) -> str:
    if isinstance(error, RecipeError):
        return "; ".join(fault.message for fault in error.faults)
    return error.message if isinstance(error, click.UsageError) else str(error)


def _choice(of: str, text: str) -> Choice:
    from tpsprune.recipe.write import DATA, MODELS, choose

    return choose(text, MODELS if of == "model" else DATA, f"--{of}")


def _target(text: str) -> str:
    from tpsprune.recipe.write import as_toml

    return as_toml(tomllib.loads(target_override(text))["prune"]["target"])


def _epochs(text: str) -> int:
    if not text.strip().isdecimal():
        raise click.UsageError(f"'{text}' is no number of epochs: use 0, 1, 2, ...")
    return int(text)


def _name(text: str) -> str:
    from tpsprune.recipe.schema import is_name

    if not is_name(text):
        raise click.UsageError(f"'{text}' is no name: use lower-case letters, digits and hyphens, 64 at most")
    return text


_READ: Final[dict[str, Callable[[str], Any]]] = {
    "model": partial(_choice, "model"),
    "data": partial(_choice, "data"),
    "target": _target,
    "epochs": _epochs,
    "name": _name,
}
