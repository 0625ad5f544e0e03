"""Errors that a user can solve, and how a command tells them."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import typer
from wasabi import msg


class StepError(Exception):
    """A problem that the user can solve.

    problem (str): What is wrong, naming the file and line, or the id.
    remedy (str): What to do about it.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


def main(*commands: Callable[..., None], **settings: Any) -> None:
    """Run a function as a command line, or several as its subcommands; errors as one message and a non-zero exit code.

    *commands (Callable[..., None]): Functions with typer annotations.
    **settings (Any): Of typer's commands.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    for command in commands:
        app.command(**settings)(command)
    try:
        app()
    except StepError as error:
        _give_up(error.problem, error.remedy)
    except shutil.Error as error:
        if not isinstance(error.args[0], list):
            raise
        source, _, reason = error.args[0][0]  # what copytree could not copy, the first of all
        _give_up(
            f"{reason}: {source}", "Look at this file and at the space on the disk, and run the same command again."
        )
    except OSError as error:
        path = _path_of(error)
        remedies = {
            errno.ENOSPC: "Free some space on this disk and run the same command again: what stood there is untouched.",
            errno.EDQUOT: "Free some of your quota and run the same command again: what stood there is untouched.",
            errno.EFBIG: "Files here have a limit (see ulimit -f, or the file system's): raise it, or work elsewhere.",
            errno.EACCES: "Make this path readable and writable for you, or work in another folder.",
            errno.EROFS: "The file system is read-only: work in another folder.",
        }
        if path and _is_named(path):
            remedies[errno.ENOENT] = "Check the path; an earlier step may have to run first."
            remedies |= dict.fromkeys(
                (errno.ENOTDIR, errno.EISDIR, errno.EEXIST), "Check the path: a file stands where a folder has to be."
            )
        if error.errno not in remedies:
            raise
        _give_up(f"{error.strerror}: {path or 'while writing'}", remedies[error.errno])


def _path_of(error: OSError) -> str:
    return "" if error.filename is None else os.fsdecode(error.filename)


def _is_named(path: str) -> bool:
    """Whether a path is one of the arguments of this command, or below or above one: then the user can mend it."""
    named = [Path(argument.rpartition("=")[2]).absolute() for argument in sys.argv[1:]]
    absolute = Path(path).absolute()
    return any(absolute.is_relative_to(one) or one.is_relative_to(absolute) for one in named)


def _give_up(problem: str, remedy: str) -> NoReturn:
    msg.fail(problem)
    print(remedy)  # as it is: wasabi would break the lines of a command
    sys.exit(1)
