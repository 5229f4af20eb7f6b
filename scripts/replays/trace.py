"""What a replay plays: jobs that people really submitted, and machines that really stood somewhere.

Two CSV files with a head, plain or compressed (`.gz`). Jobs: timestamp, duration, num_gpus, cluster (the institution);
machines: sn, cpu_milli, memory_mib, gpu, model. Further columns are ignored. A file with a malformed row is refused as
a whole, by one line that names the row: half a trace would look like a quiet day.
"""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

from node.errors import UserError
from protocol.metering import GPUS_MAX
from protocol.quotes import OFFERED_GPUS_MAX
from scripts.replays.devices import find_device

DURATION_SECONDS_MAX = 366 * 24 * 3600

Row = TypeVar("Row")


class TracedJob(NamedTuple):
    """A job as the trace tells of it."""

    submitted_ms: int
    """Milliseconds since the replay's start."""
    duration_ms: int
    gpus: int
    institution: str


class TracedMachine(NamedTuple):
    """A machine with GPUs, all of one model."""

    name: str
    cores: int
    memory_bytes: int
    gpus: int
    model: str


class _DatedJob(NamedTuple):
    submitted: datetime
    duration_seconds: float
    gpus: int
    institution: str


def read_jobs(path: Path, start: datetime | None, hours: float) -> tuple[list[TracedJob], datetime]:
    """The jobs submitted in the `hours` after `start` (by default the first job's time), in their order, and the start.

    Raises: UserError.
    """
    dated = sorted(_read(path, ("timestamp", "duration", "num_gpus", "cluster"), _read_job))
    if not dated:
        raise UserError(f"{path}: holds no jobs")
    begin = dated[0].submitted if start is None else start
    found = []
    for job in dated:
        submitted_ms = round((job.submitted - begin).total_seconds() * 1000)
        if 0 <= submitted_ms < hours * 3_600_000:
            duration_ms = round(job.duration_seconds * 1000)
            found.append(TracedJob(submitted_ms, duration_ms, job.gpus, job.institution))
    if not found:
        raise UserError(
            f"{path}: no job was submitted in the {hours:g} h from {begin:%Y-%m-%d %H:%M}: it tells of "
            f"{dated[0].submitted:%Y-%m-%d} to {dated[-1].submitted:%Y-%m-%d}"
        )
    return found, begin


def read_machines(path: Path) -> list[TracedMachine]:
    """All machines with a GPU, in the file's order. Raises: UserError."""
    found = [
        machine
        for machine in _read(path, ("sn", "cpu_milli", "memory_mib", "gpu", "model"), _read_machine)
        if machine.gpus
    ]
    if not found:
        raise UserError(f"{path}: holds no machine with a GPU")
    (name, count), *_ = Counter(machine.name for machine in found).most_common(1)
    if count > 1:
        raise UserError(f"{path}: the machine {name} stands there {count} times")
    return found


def parse_time(text: str) -> datetime:
    """A date or a date with a time, such as `2017-10-05 08:00`; without a zone it is UTC. Raises: ValueError."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _read(path: Path, columns: tuple[str, ...], read_row: Callable[[dict[str, str]], Row]) -> Iterator[Row]:
    try:
        with _open(path) as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{path}: lacks the column {missing[0]} (needed: {', '.join(columns)})")
            for row in reader:
                if any(row[column] is None for column in columns):
                    raise UserError(f"{path}, line {reader.line_num}: it is shorter than the head")
                try:
                    yield read_row(row)
                except (ValueError, UserError) as error:
                    raise UserError(f"{path}, line {reader.line_num}: {error}") from None
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"cannot read {path}: {reason}") from None


def _open(path: Path) -> IO[str]:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def _read_job(row: dict[str, str]) -> _DatedJob:
    return _DatedJob(
        parse_time(row["timestamp"]),
        _read_number(row, "duration", 0.001, DURATION_SECONDS_MAX),
        _read_count(row, "num_gpus", 1, GPUS_MAX),
        _read_name(row, "cluster"),
    )


def _read_machine(row: dict[str, str]) -> TracedMachine:
    find_device(row["model"])
    return TracedMachine(
        _read_name(row, "sn"),
        _read_count(row, "cpu_milli", 1000, 10**8) // 1000,
        _read_count(row, "memory_mib", 1024, 2**30) << 20,
        _read_count(row, "gpu", 0, OFFERED_GPUS_MAX),
        row["model"],
    )


def _read_name(row: dict[str, str], column: str) -> str:
    name = row[column].strip()
    if not 1 <= len(name.encode()) <= 32:
        raise ValueError(f"{column} is a name of 1 to 32 bytes, not {row[column][:40]!r}")
    return name


def _read_number(row: dict[str, str], column: str, least: float, most: float) -> float:
    try:
        number = float(row[column])
    except ValueError:
        raise ValueError(f"{column} is no number: {row[column][:40]!r}") from None
    if not least <= number <= most:
        raise ValueError(f"{column} must lie between {least:g} and {most:g}, not {row[column][:40]!r}")
    return number


def _read_count(row: dict[str, str], column: str, least: int, most: int) -> int:
    number = _read_number(row, column, least, most)
    if number != int(number):
        raise ValueError(f"{column} must be a whole number, not {row[column][:40]!r}")
    return int(number)
