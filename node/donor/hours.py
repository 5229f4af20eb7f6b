"""The hours in which a machine is lent, as its owner writes them: `mon-fri 18:00-08:00`, `sat-sun`, `22:00-06:00`.

An entry names days, a time of the day, or both; without days it holds every day, without a time the whole day. A time
that ends before it starts goes on across midnight and belongs to the day on which it started. The wall clock of the
machine counts: at a change to summer time the hours follow the clock.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

from node.errors import UserError

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_SECONDS = 24 * 3600
WEEK_SECONDS = 7 * DAY_SECONDS
EXAMPLE = "write it like `mon-fri 18:00-08:00` or `sat-sun`"

_DAY = "|".join(DAYS)
_ENTRY = re.compile(
    rf"(?:(?P<first>{_DAY})(?:-(?P<last>{_DAY}))?)?\s*"
    r"(?:(?P<start>\d{1,2}:\d{2})\s*-\s*(?P<end>\d{1,2}:\d{2}))?",
    re.ASCII | re.IGNORECASE,
)


class Span(NamedTuple):
    """A piece of every week. It may go on across the end of the week."""

    start_seconds: int
    """From Monday, 00:00."""
    length_seconds: int


@lru_cache(maxsize=64)
def parse_hours(entry: str) -> tuple[Span, ...]:
    """The pieces of the week that one entry means. Raises: UserError."""
    match = _ENTRY.fullmatch(entry.strip())
    if match is None or not entry.strip():
        raise UserError(f"{entry!r} is no time of the week: {EXAMPLE}")
    start = _read_clock(entry, match["start"] or "00:00")
    end = _read_clock(entry, match["end"] or "24:00")
    if start in (DAY_SECONDS, end):
        raise UserError(f"{entry!r} ends when it starts: {EXAMPLE}")
    first = DAYS.index((match["first"] or "mon").lower())
    last = DAYS.index((match["last"] or match["first"] or "sun").lower())
    length = (end - start) % DAY_SECONDS or DAY_SECONDS
    return tuple(Span((first + day) % 7 * DAY_SECONDS + start, length) for day in range((last - first) % 7 + 1))


def is_within_hours(hours: Sequence[str], local: datetime) -> bool:
    """Whether the machine is lent at this time of its own clock. No hours at all: always."""
    second = _compute_second_of_week(local)
    return not hours or any((second - span.start_seconds) % WEEK_SECONDS < span.length_seconds for span in _list(hours))


def compute_seconds_left(hours: Sequence[str], local: datetime) -> int | None:
    """For how long the machine is still lent: 0 outside its hours, None when they never end."""
    if not hours:
        return None
    begun, left = _compute_second_of_week(local), 0
    while left < WEEK_SECONDS:
        second = (begun + left) % WEEK_SECONDS
        rest = [span.length_seconds - (second - span.start_seconds) % WEEK_SECONDS for span in _list(hours)]
        if max(rest) <= 0:
            return left
        left += max(rest)
    return None


def _list(hours: Sequence[str]) -> list[Span]:
    return [span for entry in hours for span in parse_hours(entry)]


def _compute_second_of_week(local: datetime) -> int:
    return local.weekday() * DAY_SECONDS + local.hour * 3600 + local.minute * 60 + local.second


def _read_clock(entry: str, text: str) -> int:
    """Seconds since midnight; 24:00 is the midnight at the end of a day."""
    hour, minute = map(int, text.split(":"))
    seconds = hour * 3600 + minute * 60
    if minute > 59 or seconds > DAY_SECONDS:
        raise UserError(f"{text} in {entry!r} is no time of the day: {EXAMPLE}")
    return seconds
