"""How far a job has come, on one line below its log: elapsed of its longest time, credits so far, and its own word.

A job may print lines `::progress 42%` (a number from 0 to 100, alone in its line). They are taken out of the log that
is shown; the stored log keeps them. The line appears on a terminal only.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, TextIO

import click

from node.terminal import make_printable
from protocol.credits import format_credits

if TYPE_CHECKING:
    from node.wallet.job_records import WalletJob
    from node.wallet.wallet import Wallet

_PROGRESS = re.compile(r"^::progress[ ]+(\d{1,3})(?:\.\d+)?[ ]*%?[ ]*\r?\n?", re.MULTILINE)
_CLEAR = "\r\033[K"
BAR_WIDTH = 20


def split_progress(text: str) -> tuple[str, int | None]:
    """(what is shown of a piece of log, the last progress in it in percent)."""
    found = [min(100, int(match[1])) for match in _PROGRESS.finditer(text)]
    return _PROGRESS.sub("", text), found[-1] if found else None


def describe_progress(
    elapsed_seconds: int, wall_seconds: int, amount: int, amount_max: int, percent: int | None
) -> str:
    """One line; without the job's own word the bar shows the time."""
    share = percent if percent is not None else min(100, 100 * elapsed_seconds // max(1, wall_seconds))
    full = BAR_WIDTH * share // 100
    own = f" {percent} %" if percent is not None else ""
    return (
        f"[{'#' * full}{'-' * (BAR_WIDTH - full)}]{own}  {_format_time(elapsed_seconds)} of "
        f"{_format_time(wall_seconds)}, {format_credits(amount)} of {format_credits(amount_max)} credits"
    )


def _format_time(seconds: int) -> str:
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"


class JobScreen:
    """A job's log on standard output, and its progress below it where both streams are a terminal."""

    def __init__(self, wallet: Wallet, output: TextIO | None = None, errors: TextIO | None = None) -> None:
        self._wallet = wallet
        self._output = output or sys.stdout
        self._errors = errors or sys.stderr
        self._has_line = self._output.isatty() and self._errors.isatty()
        self._percent: int | None = None
        self._job: WalletJob | None = None

    def show_log(self, content: bytes) -> None:
        """What a stranger's machine says: shown as text, without control characters that a terminal obeys."""
        text, percent = split_progress(content.decode("utf-8", "replace"))
        self._percent = percent if percent is not None else self._percent
        self._clear()
        self._output.write("".join(one if one.isprintable() or one in "\n\t" else "?" for one in text))
        self._output.flush()

    def tell(self, text: str) -> None:
        """A line about the job."""
        self._clear()
        click.echo(make_printable(text), file=self._errors)

    def look(self, job: WalletJob) -> None:
        """Draw the progress anew."""
        if self._job is not None and self._job.job_id != job.job_id:
            self._percent = None
        self._job = job
        if not self._has_line or job.has_ended or not job.started_at_seconds:
            self._clear()
            return
        ticks, quote = job.list_ticks(), job.decode_quote(self._wallet)
        elapsed = ticks[-1].elapsed_ms // 1000 if ticks else 0
        amount = ticks[-1].amount if ticks else 0
        line = describe_progress(elapsed, quote.wall_seconds, amount, quote.amount_max, self._percent)
        self._errors.write(_CLEAR + line)
        self._errors.flush()

    def _clear(self) -> None:
        if self._has_line:
            self._errors.write(_CLEAR)
            self._errors.flush()
