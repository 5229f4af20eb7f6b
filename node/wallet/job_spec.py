"""The job file: what to run, on what, and for how much at most. A subset of SkyPilot's task file, so people know it.

name: digits
workdir: .                       # copied into the job
runtime: python-ml               # installed packages, by the name under which donors offer them
resources: {cpus: 2, memory: 4, disk_size: 1}      # cores, GB, GB; "4+" means 4
envs: {EPOCHS: 20}
secrets: {TOKEN: null}           # taken from the variable TOKEN of whoever runs the command, and shown nowhere
setup: |                         # shell text; runs on the donor's machine, too
run: python3 train.py            # leaves its results in the folder `out`, its checkpoints in `checkpoint`
network: false                   # true: needs the hosts that the donor allows; or a list such as [pypi.org:443]
max_duration: 10m
max_credits: 5
program: students                # spend this budget only (name or id); without it, whatever expires first
job_class: batch                 # what a budget may be bound to
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath

import msgspec

from node.errors import UserError
from node.hosts import parse_host
from node.terminal import parse_duration
from node.wallet.matching import GpuWish, JobNeeds
from protocol.conversation import CHECKPOINT_NAME, OUTPUT_NAME, Script
from protocol.credits import parse_credits
from protocol.errors import InvalidInput
from protocol.limits import NAME_BYTES_MAX
from protocol.metering import CORES_MAX, GPUS_MAX, WALL_SECONDS_MAX

JOB_FILE_BYTES_MAX = 256 * 1024
BYTES_PER_GB = 10**9
JOB_CLASS_DEFAULT = "batch"
RESERVED_PREFIX = "ALLMENDE_"
FOLDER_VARIABLES = (("ALLMENDE_CHECKPOINT", CHECKPOINT_NAME), ("ALLMENDE_OUT", OUTPUT_NAME))
"""What every job finds among its variables: paths from the folder in which it starts."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Number = int | float | str
Accelerators = str | dict[str, int] | list[str] | None


class _Resources(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    accelerators: Accelerators = None
    vram: Number | None = None
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
    secrets: dict[str, str | int | float | None] = {}
    file_mounts: dict[str, str] = {}
    network: bool | list[str] = False
    max_credits: Number | None = None
    max_duration: int | str = "1h"
    program: str | None = None
    job_class: str = JOB_CLASS_DEFAULT


@dataclass(frozen=True, kw_only=True)
class JobSpec(JobNeeds):
    """A job file that was read and checked."""

    name: str
    path: Path
    """The job file itself."""
    workdir: Path
    mounts: tuple[tuple[PurePosixPath, Path], ...]
    """(place in the job's work directory, file or folder here)."""
    script: Script = field(repr=False)
    """With the secrets among its variables: for the donor only."""
    secrets: tuple[str, ...]
    """Names of the secret variables."""

    @property
    def needs(self) -> JobNeeds:
        """What the job asks of a machine and of the wallet, without what it consists of."""
        return JobNeeds(**{one.name: getattr(self, one.name) for one in fields(JobNeeds)})


def read_job_file(path: Path, environment: Mapping[str, str] = os.environ) -> JobSpec:
    """What the file says; empty secrets are taken from `environment`.

    Raises: UserError that names the place in the file and what is wrong there.
    """
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
    return _check(path, raw, environment)


def _check(path: Path, raw: _File, environment: Mapping[str, str]) -> JobSpec:
    if not _NAME.fullmatch(raw.name):
        raise UserError(f"{path}: name: use letters, digits, dots, - and _")
    if not raw.run.strip():
        raise UserError(f"{path}: run: nothing to run")
    workdir = (path.parent / raw.workdir).resolve()
    if not workdir.is_dir():
        raise UserError(f"{path}: workdir: {workdir} is no directory")
    return JobSpec(
        name=raw.name,
        path=path.resolve(),
        workdir=workdir,
        mounts=tuple(_read_mount(path, place, source) for place, source in sorted(raw.file_mounts.items())),
        script=Script(raw.setup, raw.run, _read_variables(path, raw, environment)),
        secrets=tuple(sorted(raw.secrets)),
        runtime=raw.runtime,
        cores=_read_cores(path, raw.resources.cpus),
        memory_bytes=_read_gigabytes(path, "resources.memory", raw.resources.memory),
        disk_bytes=_read_gigabytes(path, "resources.disk_size", raw.resources.disk_size),
        gpus=_read_accelerators(path, raw.resources.accelerators),
        gpu_memory_gb=_read_gpu_memory(path, raw.resources.vram),
        is_online=bool(raw.network),
        hosts=_read_hosts(path, raw.network),
        wall_seconds=_read_duration(path, raw.max_duration),
        amount_max=_read_credits(path, raw.max_credits),
        program=raw.program,
        job_class=raw.job_class,
    )


def _read_variables(path: Path, raw: _File, environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """All variables of the job, by name: its own, the secret ones, and those that name its folders."""
    for place, names in (("envs", raw.envs), ("secrets", raw.secrets)):
        for name in names:
            if not _VARIABLE.fullmatch(name):
                raise UserError(f"{path}: {place}: {name!r} can't be the name of a variable")
            if name.startswith(RESERVED_PREFIX):
                raise UserError(f"{path}: {place}: names with {RESERVED_PREFIX} are given to every job: choose another")
    if twice := sorted(raw.envs.keys() & raw.secrets.keys()):
        raise UserError(f"{path}: secrets: {twice[0]} stands among envs, too: which one is meant?")
    found = {name: str(value) for name, value in raw.envs.items()}
    for name, value in raw.secrets.items():
        secret = environment.get(name, "") if value in (None, "") else str(value)
        if not secret:
            raise UserError(f"{path}: secrets: {name} has no value: set the variable {name} before the command")
        found[name] = secret
    return tuple(sorted((found | dict(FOLDER_VARIABLES)).items()))


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
    try:
        seconds = parse_duration(str(value))
    except UserError as error:
        raise UserError(f"{path}: max_duration: {error}") from None
    if not 1 <= seconds <= WALL_SECONDS_MAX:
        raise UserError(f"{path}: max_duration: a job takes from 1s to 30d")
    return seconds


def _read_credits(path: Path, value: Number | None) -> int | None:
    if value is None:
        return None
    try:
        return parse_credits(str(value))
    except InvalidInput as error:
        raise UserError(f"{path}: max_credits: {error}") from None


def _read_accelerators(path: Path, value: Accelerators) -> tuple[GpuWish, ...]:
    """Any one of "A100", "A100:2", {A100: 2}, or of several: [A100:2, H100:1], {A100: 2, H100: 1}."""
    if not value:
        return ()
    if isinstance(value, dict):
        value = [f"{name}:{count}" for name, count in value.items()]
    return tuple(_read_gpu(path, one) for one in ([value] if isinstance(value, str) else value))


def _read_gpu(path: Path, text: str) -> GpuWish:
    name, _, count = text.partition(":")
    count = count or "1"
    if not name.strip() or len(name) > NAME_BYTES_MAX or not count.isdigit() or not 1 <= int(count) <= GPUS_MAX:
        raise UserError(f"{path}: resources.accelerators: write it like A100:1")
    return GpuWish(name.strip(), int(count))


def _read_gpu_memory(path: Path, value: Number | None) -> int:
    return 0 if value is None else math.ceil(_read_number(path, "resources.vram", value))


def _read_hosts(path: Path, value: bool | list[str]) -> tuple[str, ...]:
    try:
        return () if isinstance(value, bool) else tuple(sorted({str(parse_host(host)) for host in value}))
    except UserError as error:
        raise UserError(f"{path}: network: {error}, or true for any") from None


def _read_mount(path: Path, place: str, source: str) -> tuple[PurePosixPath, Path]:
    inside = PurePosixPath(place)
    if inside.is_absolute() or ".." in inside.parts or not inside.parts:
        raise UserError(f"{path}: file_mounts: {place!r} must be a path inside the job's work directory")
    here = (path.parent / source).expanduser().resolve()
    if not here.exists():
        raise UserError(f"{path}: file_mounts: {here} does not exist (only files of this machine can be sent)")
    return inside, here
