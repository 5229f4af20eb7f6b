"""How commands speak with a person or a program: the options they share, output as text or JSON, questions.

A program reads one JSON document on standard output (`--json`); a person reads lines. Questions and progress
go to standard error and to a terminal only, so a pipe never gets anything but the answer.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import click

from node.errors import Interrupted, UserError

CommandFunction = TypeVar("CommandFunction", bound=Callable[..., Any])
Item = TypeVar("Item")
HOME_VARIABLE = "ALLMENDE_HOME"
HOME_DEFAULT = "~/.allmende"
FILE = click.Path(dir_okay=False, path_type=Path)
"""The type of an argument or option that names a file."""

_DURATION = re.compile(r"(\d{1,9})\s*([smhd]?)", re.ASCII)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def json_option(command: CommandFunction) -> CommandFunction:
    """`--json`, handed over as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")(command)


def yes_option(command: CommandFunction) -> CommandFunction:
    """`-y`, handed over as `yes`, for everything that signs or spends."""
    return click.option("-y", "--yes", is_flag=True, help="Do it without asking.")(command)


def dry_run_option(command: CommandFunction) -> CommandFunction:
    """`--dry-run`, handed over as `dry_run`."""
    return click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")(command)


def make_home_option(
    variable: str, default: str, text: str, open_home: Callable[[Path], object]
) -> Callable[[CommandFunction], CommandFunction]:
    """`--home`, handed over as `home`: what `open_home` makes of the path with ~ expanded; it need not exist yet."""

    def expand(context: click.Context, parameter: click.Parameter, value: Path) -> object:
        try:
            return open_home(value.expanduser())
        except RuntimeError as error:
            raise UserError(f"{value}: no such home directory; name it with --home") from error

    return click.option(
        "--home",
        type=click.Path(file_okay=False, path_type=Path),
        envvar=variable,
        default=default,
        show_default=True,
        show_envvar=True,
        callback=expand,
        help=text,
    )


home_option = make_home_option(HOME_VARIABLE, HOME_DEFAULT, "Directory that holds keys and settings.", Path)
"""`--home` of a person: the path `home`."""


def emit(document: Mapping[str, object], text_lines: Iterable[str], as_json: bool) -> None:
    """Print a command's answer: the document for programs, or the lines for people.

    The document's values are what JSON knows; a lazy iterable of lines is not touched for JSON.
    """
    if as_json:
        click.echo(json.dumps(document, ensure_ascii=False))
    else:
        for line in text_lines:
            click.echo("\n".join(map(make_printable, line.split("\n"))))


def make_printable(text: str) -> str:
    """What others wrote, for a terminal: in one line and without the characters that a terminal obeys."""
    return "".join(character if character.isprintable() else " " for character in text)


def format_date(unix_seconds: int) -> str:
    """A day for people, in universal time, like the epochs."""
    return time.strftime("%Y-%m-%d", time.gmtime(unix_seconds))


def format_moment(unix_seconds: int) -> str:
    """A moment for people, to the minute, in universal time."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(unix_seconds))


def parse_duration(text: str) -> int:
    """Seconds of `90s`, `10m`, `2h`, `1d`, or of a bare number. Raises: UserError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UserError(f"{text!r} is no length of time: write it like 90s, 10m, 2h or 1d")
    return int(match[1]) * _SECONDS[match[2]]


@contextmanager
def explain_interruption(text: str) -> Iterator[None]:
    """Ctrl-C inside the block is answered with what is under way and how to go on. Raises: Interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted: {text}") from None


def confirm(question: str, yes: bool) -> None:
    """Return when the person agrees, or said so beforehand with -y.

    Raises: UserError when the answer is no, and when there is nobody to ask (no terminal and no -y).
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError(f"{question} Nobody can be asked here; it needs -y")
    if not click.confirm(question, err=True):
        raise UserError("nothing was done")


def show_progress(
    items: Iterable[Item], label: str, length: int | None = None
) -> AbstractContextManager[Iterable[Item]]:
    """A progress bar around `items` where standard error is a terminal, the bare items elsewhere.

    Use as `with show_progress(chunks, "Fetching") as chunks: for chunk in chunks: ...`.
    """
    if not sys.stderr.isatty():
        return nullcontext(items)
    return click.progressbar(items, length=length, label=label, file=sys.stderr)
