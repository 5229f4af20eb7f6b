"""The job file: what to run, on what, and for how much at most. A subset of SkyPilot's task file, so people know it.

name: digits
workdir: .                       # copied into the job
runtime: python-ml               # installed packages, by the name under which donors offer them
resources: {cpus: 2, memory: 4, disk_size: 1}      # cores, GB, GB; "4+" means 4
envs: {EPOCHS: 20}
setup: |                         # shell text; runs without network, like everything here
run: python3 train.py            # leaves its results in the folder `out`
max_duration: 10m
max_credits: 5
program: students                # spend this budget only (name or id); without it, whatever expires first
job_class: batch                 # what a budget may be bound to
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec

from node.errors import UserError
from protocol.conversation import Script
from protocol.credits import parse_credits
from protocol.errors import InvalidInput
from protocol.metering import CORES_MAX, WALL_SECONDS_MAX

JOB_FILE_BYTES_MAX = 256 * 1024
BYTES_PER_GB = 10**9
JOB_CLASS_DEFAULT = "batch"

_DURATION = re.compile(r"(\d{1,7})\s*(s|m|h|d)?")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, None: 1}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Number = int | float | str


class _Resources(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    accelerators: str | dict[str, int] | None = None
    cpus: Number = 1
    memory: Number = 1
    disk_size: Number = 1


class _File(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    run: str
    workdir: str = "."
    setup: str = ""
    runtime: str | None = None
    resources: _Resources = _Resources()
    envs: dict[str, str | int | float] = {}
    file_mounts: dict[str, str] = {}
    max_credits: Number | None = None
    max_duration: int | str = "1h"
    program: str | None = None
    job_class: str = JOB_CLASS_DEFAULT


@dataclass(frozen=True)
class JobSpec:
    """A job file that was read and checked."""

    name: str
    workdir: Path
    mounts: tuple[tuple[PurePosixPath, Path], ...]
    """(place in the job's work directory, file or folder here)."""
    script: Script
    runtime: str | None
    cores: int
    memory_bytes: int
    disk_bytes: int
    gpus: int
    gpu_name: str
    """Part of the GPU's name, or empty for any."""
    wall_seconds: int
    amount_max: int | None
    """Most millicredits to put aside."""
    program: str | None
    job_class: str


def read_job_file(path: Path) -> JobSpec:
    """Raises: UserError that names the place in the file and what is wrong there."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the job file {path}: {error.strerror}") from error
    if len(content) > JOB_FILE_BYTES_MAX:
        raise UserError(f"{path} is too large for a job file: put programs and data into its workdir")
    try:
        raw = msgspec.yaml.decode(content, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no job file: {' '.join(str(error).split())}") from error
    return _check(path, raw)


def _check(path: Path, raw: _File) -> JobSpec:
    if not _NAME.fullmatch(raw.name):
        raise UserError(f"{path}: name: use letters, digits, dots, - and _")
    if not raw.run.strip():
        raise UserError(f"{path}: run: nothing to run")
    for name in raw.envs:
        if not _VARIABLE.fullmatch(name):
            raise UserError(f"{path}: envs: {name!r} can't be the name of a variable")
    gpus, gpu_name = _read_accelerators(path, raw.resources.accelerators)
    workdir = (path.parent / raw.workdir).resolve()
    if not workdir.is_dir():
        raise UserError(f"{path}: workdir: {workdir} is no directory")
    return JobSpec(
        name=raw.name,
        workdir=workdir,
        mounts=tuple(_read_mount(path, place, source) for place, source in sorted(raw.file_mounts.items())),
        script=Script(raw.setup, raw.run, tuple((name, str(raw.envs[name])) for name in sorted(raw.envs))),
        runtime=raw.runtime,
        cores=_read_cores(path, raw.resources.cpus),
        memory_bytes=_read_gigabytes(path, "resources.memory", raw.resources.memory),
        disk_bytes=_read_gigabytes(path, "resources.disk_size", raw.resources.disk_size),
        gpus=gpus,
        gpu_name=gpu_name,
        wall_seconds=_read_duration(path, raw.max_duration),
        amount_max=_read_credits(path, raw.max_credits),
        program=raw.program,
        job_class=raw.job_class,
    )


def _read_number(path: Path, place: str, value: Number) -> float:
    """A number, or text like "4+": at least 4, of which exactly 4 are asked for."""
    try:
        number = float(value.rstrip("+") if isinstance(value, str) else value)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise UserError(f"{path}: {place}: a number above 0 is needed, like 4 or 4+")
    return number


def _read_cores(path: Path, value: Number) -> int:
    number = _read_number(path, "resources.cpus", value)
    if number != int(number) or number > CORES_MAX:
        raise UserError(f"{path}: resources.cpus: whole cores are lent, like 2")
    return int(number)


def _read_gigabytes(path: Path, place: str, value: Number) -> int:
    return round(_read_number(path, place, value) * BYTES_PER_GB)


def _read_duration(path: Path, value: int | str) -> int:
    match = _DURATION.fullmatch(str(value).strip())
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not 1 <= seconds <= WALL_SECONDS_MAX:
        raise UserError(f"{path}: max_duration: write it like 90s, 10m, 2h or 1d; at most 30d")
    return seconds


def _read_credits(path: Path, value: Number | None) -> int | None:
    if value is None:
        return None
    try:
        return parse_credits(str(value))
    except InvalidInput as error:
        raise UserError(f"{path}: max_credits: {error}") from None


def _read_accelerators(path: Path, value: str | dict[str, int] | None) -> tuple[int, str]:
    """(how many, of which name) of "A100", "A100:2" or {A100: 2}."""
    if not value:
        return 0, ""
    if isinstance(value, dict):
        if len(value) != 1:
            raise UserError(f"{path}: resources.accelerators: name one kind of GPU")
        ((name, count),) = value.items()
        text = str(count)
    else:
        name, _, text = value.partition(":")
    if not (text or "1").isdigit() or int(text or "1") < 1:
        raise UserError(f"{path}: resources.accelerators: write it like A100:1")
    return int(text or "1"), name


def _read_mount(path: Path, place: str, source: str) -> tuple[PurePosixPath, Path]:
    inside = PurePosixPath(place)
    if inside.is_absolute() or ".." in inside.parts or not inside.parts:
        raise UserError(f"{path}: file_mounts: {place!r} must be a path inside the job's work directory")
    here = (path.parent / source).expanduser().resolve()
    if not here.exists():
        raise UserError(f"{path}: file_mounts: {here} does not exist (only files of this machine can be sent)")
    return inside, here
