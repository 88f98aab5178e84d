"""The console that everything is printed on."""

from __future__ import annotations

import errno
from typing import NoReturn, final

from rich.console import Console

__all__ = ["OurConsole"]


@final
class OurConsole(Console):
    """A console that leaves a closed output to the door, which knows what to say of the run behind it."""

    def on_broken_pipe(self) -> NoReturn:
        """Raise what has happened, where the library would end the program without a word."""
        self.quiet = True
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
