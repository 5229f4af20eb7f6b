"""Changing what a donor prefers, in the words of a command line: `hours=mon-fri 18:00-08:00, sat-sun`.

Lists are separated by commas, times may be written `90s`, `10m`, `2h` or `1d`, memory and disk in `GB`. What comes out
is checked like a file that somebody edited, so a command can't write settings with which no agent starts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from node.donor.settings import MEANINGS, Settings
from node.donor.who import parse_who
from node.errors import UserError
from node.terminal import parse_duration

Value = str | int | float | bool | list[str]

BYTES_PER_GB = 10**9
_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*GB", re.ASCII | re.IGNORECASE)
_TRUTH = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}


def change_settings(settings: Settings, assignments: Iterable[str]) -> Settings:
    """The settings after changes like `load_max=0.2`, checked. Raises: UserError."""
    changes: dict[str, Value] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name = name.strip()
        if not equals:
            raise UserError(f"{assignment!r} changes nothing: write NAME=VALUE")
        if name not in MEANINGS:
            raise UserError(f"{name} is no setting: `allmende donor prefs` shows all")
        changes[name] = _read_value(name, getattr(settings, name), text.strip())
    changed = msgspec.structs.replace(settings, **changes)
    changed.check()
    return changed


def add_to_list(settings: Settings, name: str, entry: str) -> Settings:
    """The settings with one more entry in `allow` or `deny`; unchanged when it is there. Raises: UserError."""
    who, other = parse_who(entry), "deny" if name == "allow" else "allow"
    if who in map(parse_who, getattr(settings, other)):
        raise UserError(f"{entry} is on the list `{other}`: take it off first with `allmende donor {other} --remove`")
    entries = getattr(settings, name)
    if who in map(parse_who, entries):
        return settings
    return msgspec.structs.replace(settings, **{name: [*entries, entry.strip()]})


def remove_from_list(settings: Settings, name: str, entry: str) -> Settings:
    """The settings without an entry, however it is written. Raises: UserError when it is not there."""
    who = parse_who(entry)
    left = [kept for kept in getattr(settings, name) if parse_who(kept) != who]
    if len(left) == len(getattr(settings, name)):
        raise UserError(f"{entry} is not on the list `{name}`")
    return msgspec.structs.replace(settings, **{name: left})


def _read_value(name: str, before: Value, text: str) -> Value:
    if isinstance(before, list):
        return [part.strip() for part in text.split(",") if part.strip()]
    if isinstance(before, str):
        return text
    if isinstance(before, bool):
        if text.lower() not in _TRUTH:
            raise UserError(f"{name} must be yes or no, not {text!r}")
        return _TRUTH[text.lower()]
    if "seconds" in name.split("_"):
        return parse_duration(text)
    if "bytes" in name.split("_") and (match := _SIZE.fullmatch(text)):
        return round(float(match[1]) * BYTES_PER_GB)
    try:
        return float(text) if isinstance(before, float) else int(text)
    except ValueError:
        raise UserError(f"{name} must be a number, not {text!r}") from None
