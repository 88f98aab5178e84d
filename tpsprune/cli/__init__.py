"""The command line. One file per command; other packages are imported only when a command runs.

Other packages add commands through entry points of the group ``tpsprune.commands``.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any, Final, final

import click

from tpsprune.cli.terminal import Terminated, adapt_streams, ending_on_terminate
from tpsprune.errors import DeviceError, DivergedError, PeersError, RecipeError, TpspruneError, did_you_mean

__all__ = ["COMMANDS", "commands", "main"]

COMMANDS: Final = {
    "train": "train",
    "prune": "train",
    "family": "family",
    "repair": "repair",
    "transfer": "transfer",
    "compare": "compare",
    "report": "compare",
    "init": "init",
    "check": "check",
    "recipes": "check",
    "show": "show",
    "fidelity": "fidelity",
    "export": "export",
    "doctor": "check",
}
"""Commands in the order a user meets them, and the file of each."""
GROUP: Final = "tpsprune.commands"
"""Entry points of other packages: the name of a command, and where it is, as ``module:command``."""
STUDIES: Final = ("study", "tpsprune_studies.command")
"""Shipped beside this package; found without its entry point too, where a checkout lies on the path."""
RUNNING: Final = ("train", "prune", "compare", "study")
BY_ITSELF: Final = ("compare", "study")
"""Commands that resume by themselves."""
CLOSED_PIPE = 141
OUTPUT_FAULTS: Final = (errno.EPIPE, errno.ENOSPC, errno.EIO)
PATH_FAULTS: Final = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)
"""Faults of a path that cannot be read, wherever they are raised."""


@cache
def commands() -> dict[str, str]:
    """Return every command and where it is, as ``module:command``: our own first, none of which gives way."""
    found = {name: f"tpsprune.cli.{file}:{name}" for name, file in COMMANDS.items()}
    name, module = STUDIES
    added = {point.name: point.value for point in entry_points(group=GROUP)}
    if name not in added and find_spec(module.partition(".")[0]):
        added[name] = f"{module}:{name}"
    return {**found, **{name: place for name, place in added.items() if name not in found}}


@final
class UserFault(click.ClickException):
    """One of our errors as click prints it: ``Error:`` and the message, on standard error."""

    exit_code = 2


@final
class Door(click.Group):
    """Loads a command when it is called, so that ``--help`` is quick, and turns our errors into messages."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's signature
        """Return the commands in the order a user meets them."""
        return list(commands())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command's file and return the command of the same name."""
        if cmd_name not in commands():
            return None
        module, _, attribute = commands()[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; for an unknown one the error suggests the nearest."""
        if args and not args[0].startswith("-") and args[0] not in commands():
            hint = did_you_mean(args[0], commands()) or f" (commands: {', '.join(commands())})"
            raise click.UsageError(f"no command '{args[0]}'{hint}", ctx)
        if started_by_launcher() and args[:1] != ["train"]:
            raise PeersError(
                f"{os.environ['WORLD_SIZE']} processes were started, and only 'train' runs in several: "
                "start this command plainly"
            )
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run as click does, on a terminal that may lack characters, and end on SIGTERM as on Ctrl-C."""
        adapt_streams()
        with ending_on_terminate():
            return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a user's fault ends in one message and exit code 2, never in a traceback."""
        rank = int(os.environ.get("RANK", "0")) if started_by_launcher() else 0
        try:
            return super().invoke(ctx)
        except TpspruneError as error:
            # What all meet is printed once a machine; what one meets alone (a full disk) names its rank.
            is_shared = error.is_told or isinstance(error, DivergedError)
            is_of_machine = isinstance(error, RecipeError | DeviceError | PeersError)
            if rank and (is_shared or (is_of_machine and os.environ.get("LOCAL_RANK", "0") != "0")):
                ctx.exit(UserFault.exit_code)
            raise UserFault(f"rank {rank}: {error}" if rank else str(error)) from error
        except (KeyboardInterrupt, click.Abort) as error:
            word, code = ("terminated", 143) if isinstance(error, Terminated) else ("interrupted", 130)
            click.echo(f"\n{word}{_onward(ctx)}", err=True)
            ctx.exit(code)
        except OSError as error:
            if error.filename is not None and error.errno in PATH_FAULTS:
                message = f"cannot read {error.filename}: {error.strerror}; use another path"
                raise UserFault(message) from error
            # Files of this package raise errors with messages; an OSError is left for standard output.
            if error.filename is not None or error.errno not in OUTPUT_FAULTS:
                raise
            _forget_output()
            if error.errno == errno.EPIPE and ctx.invoked_subcommand not in RUNNING:
                ctx.exit(CLOSED_PIPE)
            raise UserFault(f"the output cannot be written ({error.strerror}){_onward(ctx)}") from error


def started_by_launcher() -> bool:
    """Return whether torchrun or the like started several processes of which this is one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _onward(ctx: click.Context) -> str:
    """Return how to go on with a run, as the end of a message; nothing for a command that runs none."""
    if ctx.invoked_subcommand in BY_ITSELF:
        return "; the same command resumes"
    return "; a run that has begun resumes with --resume" if ctx.invoked_subcommand in RUNNING else ""


def _forget_output() -> None:
    """Point standard output nowhere, so that what is left in its buffer raises no second time at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(
    cls=Door,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Begin with:  tpsprune train digits",
)
@click.version_option(package_name="tpsprune")
def main() -> None:
    """A smaller PyTorch model, equally good, for less total energy, with proof.

    tpsprune trains the model of a RECIPE, watches its signals to decide when to draw the pruned
    subnetwork (the ticket), retrains it, and benchmarks both: accuracy, size, latency, energy.
    """
