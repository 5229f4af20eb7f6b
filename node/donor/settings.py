"""Where a donor's files lie, and what the donor decided to lend.

donor.toml     what is lent, when, to whom and where: `donor prefs` shows and changes it, an editor does, too
donor.key      the account that earns; signs offers, quotes, ticks and settlements
seal.key       opens what is sealed to this machine
charter        the federation's founding document, pinned at set-up: everything is checked against it
score.json     what the last self-test measured
jobs/          one folder a job: what was promised, metered and signed, each step on disk before it is taken
runtimes/      packages that jobs may use      sandbox/   where jobs run
wish           `pause` (perhaps until a moment) or `finish`, written by those commands and read by the agent
"""

from __future__ import annotations

import json
import re
import time
import tomllib
from pathlib import Path

import msgspec

from node.config import explain_conversion, format_toml
from node.donor.executors.slurm_settings import SlurmSettings
from node.donor.hours import parse_hours
from node.donor.who import parse_who
from node.errors import UserError
from node.files import write_atomically
from node.hosts import parse_host
from protocol.charter import FoundedCharter, decode_founded_charter
from protocol.errors import InvalidInput
from protocol.limits import NAME_BYTES_MAX
from protocol.quotes import HOSTS_MAX

DIRECTORY_NAME = "donor"
WISHES = frozenset({"run", "pause", "finish"})
EXECUTORS = ("sandbox", "slurm")
"""What may run the jobs: this machine itself, or a cluster."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `donor.toml` says. A file that lacks a key of later versions is as good as one with its default."""

    node_url: str
    machine: str
    cores: int
    memory_bytes: int
    disk_bytes: int
    job_classes: list[str]
    runtimes: list[str]
    wall_seconds_max: int = 24 * 3600
    tick_seconds: int = 30
    grace_seconds: int = 3600
    processes_max: int = 512
    gpus: list[str] = []
    """UUIDs of the GPUs that are lent."""
    hosts: list[str] = []
    # Whose machine it is.
    hours: list[str] = []
    load_max: float = 0.0
    is_idle_gpu_needed: bool = True
    away_seconds: int = 120
    suspend_seconds_max: int = 600
    # Who may use it, and for what.
    allow: list[str] = []
    deny: list[str] = []
    acceptable_use: str = ""
    job_credits_max: int = 0
    job_cores_max: int = 0
    job_memory_bytes_max: int = 0
    job_gpus_max: int = 0
    account_credits_max: int = 0
    account_jobs_max: int = 0
    epoch_credits_max: int = 0
    idle_seconds_max: int = 1800
    # What runs the jobs.
    executor: str = "sandbox"
    slurm: SlurmSettings | None = None

    def check(self) -> None:
        """Raise `UserError` when a value makes no sense."""
        for name in ABOVE_ZERO:
            if getattr(self, name) <= 0:
                raise UserError(f"{name} in donor.toml must be above 0")
        for name in MEANINGS:
            value = getattr(self, name)
            if not isinstance(value, str | list) and value < 0:
                raise UserError(f"{name} in donor.toml can't be below 0")
        if not self.job_classes:
            raise UserError("donor.toml lists no job_classes: nobody could run anything")
        if not self.load_max <= 1:
            raise UserError("load_max in donor.toml is a share of the processor cores: at most 1")
        for entry in self.hours:
            parse_hours(entry)
        for entry in self.hosts:
            _check_host(entry)
        if len(self.hosts) > HOSTS_MAX:
            raise UserError(f"hosts in donor.toml: an offer names at most {HOSTS_MAX}")
        for who in (*self.allow, *self.deny):
            parse_who(who)
        if both := sorted(set(self.allow) & set(self.deny)):
            raise UserError(f"donor.toml both allows and denies {both[0]}")
        if self.acceptable_use and not _SHA256.fullmatch(self.acceptable_use):
            raise UserError("acceptable_use in donor.toml is no SHA-256: run `allmende donor prefs --accept-use`")
        self._check_executor()

    def _check_executor(self) -> None:
        if self.executor not in EXECUTORS:
            raise UserError(f"executor in donor.toml must be one of {', '.join(EXECUTORS)}, not {self.executor!r}")
        if self.executor == "slurm" and self.slurm is None:
            raise UserError("executor in donor.toml is slurm: say in a table [slurm] how to reach the cluster")
        if self.executor == "slurm" and self.hosts:
            raise UserError("hosts in donor.toml: jobs on a cluster can't reach any, take them out")
        if self.slurm is not None:
            self.slurm.check()


ABOVE_ZERO = frozenset(
    {
        "cores",
        "memory_bytes",
        "disk_bytes",
        "wall_seconds_max",
        "tick_seconds",
        "grace_seconds",
        "processes_max",
    }
)
RESTART_NAMES = frozenset({"executor", "gpus", "node_url", "runtimes"})
"""What a running agent does not take up: it is tied to that node and executor, runtimes are read at its start, and a
GPU must have been measured first."""

MEANINGS = {
    "node_url": "the node of the institution that sponsors this machine",
    "machine": "shown in the public list of offers",
    "cores": "what jobs may use at most, all together",
    "memory_bytes": "the same for memory",
    "disk_bytes": "the same for disk",
    "job_classes": "classes of jobs to take",
    "runtimes": "packages to offer; the self-test builds them",
    "wall_seconds_max": "longest job",
    "gpus": "UUIDs of the GPUs that are lent, of those that `donor doctor` lists",
    "tick_seconds": "time between two readings of the meter: what you trust a payer with",
    "grace_seconds": "how long you may take to settle a job",
    "processes_max": "processes of one job",
    "hosts": "`name:port` that jobs may reach, if they ask for it; none: no network at all",
    "hours": 'when it is lent, by this machine\'s clock, like "mon-fri 18:00-08:00" and "sat-sun"; none: always',
    "load_max": "share of the cores, 0 to 1, above which your own processes take it back; 0: they never do",
    "is_idle_gpu_needed": "whether a process of yours on a lent GPU takes the machine back",
    "away_seconds": "how long you must have been away before it is lent again",
    "suspend_seconds_max": "how long a job may wait, suspended and free of charge, before it ends; 0: at once",
    "allow": "who may use it: accounts, programs, members by name or number; none: everybody",
    "deny": "who may not, the same way; counts before allow",
    "acceptable_use": "SHA-256 of the federation's use policy that you accepted; none: that of its founding",
    "job_credits_max": "credits that one job may cost; 0: no limit",
    "job_cores_max": "cores of one job; 0: no limit but the machine",
    "job_memory_bytes_max": "memory of one job; 0: no limit but the machine",
    "job_gpus_max": "GPUs of one job; 0: no limit but the machine",
    "account_credits_max": "credits that one account may use here in an epoch; 0: no limit",
    "account_jobs_max": "jobs that one account may have here at a time; 0: no limit",
    "epoch_credits_max": "credits that all together may use here in an epoch; 0: no limit",
    "idle_seconds_max": "a job that computes nothing for so long is ended; 0: never",
    "executor": "what runs the jobs: sandbox (this machine) or slurm (a cluster, see the table [slurm])",
}
"""What each setting is for: the comments of `donor.toml`, and what `donor prefs` shows."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def _check_host(entry: str) -> None:
    if len(str(parse_host(entry))) > NAME_BYTES_MAX:
        raise UserError(f"hosts in donor.toml: {entry!r} is longer than {NAME_BYTES_MAX} characters")


class GpuScore(msgspec.Struct, frozen=True):
    """What the self-test found of one GPU. One with a fault is not lent."""

    uuid: str
    name: str
    memory_bytes: int
    """What it claims."""
    weight: int
    """What was measured, or the charter's rate for this name where that is lower."""
    gigaflops: float
    """Float16 matrix product."""
    bandwidth_gb_per_second: float
    memory_gb: float
    """What held words, of what was free."""
    fault: str


class Score(msgspec.Struct, frozen=True):
    """What the self-test measured: of the weakest sound GPU that is lent or, without one, of the cores."""

    weight: int
    gigaflops: float
    """Matrix product: float16 on a GPU, float32 on cores."""
    bandwidth_gb_per_second: float
    memory_gb: float
    measured_at_seconds: int
    gpus: tuple[GpuScore, ...] = ()
    """All that were measured."""

    @property
    def sound_gpus(self) -> tuple[GpuScore, ...]:
        """Those that may be lent, as the self-test found them."""
        return tuple(gpu for gpu in self.gpus if not gpu.fault)


class DonorHome:
    """The directory of a donor."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.settings_path = directory / "donor.toml"
        self.key_path = directory / "donor.key"
        self.seal_key_path = directory / "seal.key"
        self.charter_path = directory / "charter"
        self.amendments_path = directory / "amendments"
        self.score_path = directory / "score.json"
        self.jobs = directory / "jobs"
        self.runtimes = directory / "runtimes"
        self.sandbox = directory / "sandbox"
        self.cursor_path = directory / "inbox.json"
        self.wish_path = directory / "wish"

    def check_exists(self) -> None:
        """Raise `UserError` when `donor setup` has not been run here."""
        if not self.settings_path.exists():
            raise UserError(f"no donor is set up in {self.directory}: run `allmende donor setup` first")

    def load_settings(self) -> Settings:
        """Raises: UserError when the file is missing or says something impossible."""
        self.check_exists()
        return read_settings(self.settings_path)

    def save_settings(self, settings: Settings) -> None:
        """Write `donor.toml`, with a comment for each value."""
        lines = []
        values = msgspec.to_builtins(settings)
        cluster = values.pop("slurm")
        for name, value in values.items():
            lines.append(f"# {MEANINGS[name]}")
            lines.append(f"{name} = {format_toml(value)}")
        if cluster is not None:  # a table comes last in TOML
            lines += ["", "[slurm]", *(f"{name} = {format_toml(value)}" for name, value in cluster.items())]
        write_atomically(self.settings_path, ("\n".join(lines) + "\n").encode())

    def load_charter(self) -> FoundedCharter:
        """The pinned founding document, its signatures checked again. Raises: UserError."""
        try:
            return decode_founded_charter(self.charter_path.read_bytes())
        except (OSError, InvalidInput) as error:
            raise UserError(f"the pinned charter {self.charter_path} can't be used ({error})") from error

    def load_score(self) -> Score | None:
        """The last self-test, or None."""
        try:
            return msgspec.json.decode(self.score_path.read_bytes(), type=Score)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise UserError(f"{self.score_path} is damaged ({error}): run `allmende donor selftest`") from error

    def save_score(self, score: Score) -> None:
        """Keep what was measured."""
        write_atomically(self.score_path, msgspec.json.encode(score) + b"\n")

    def read_wish(self) -> str:
        """`run`, `pause` or `finish`: what the donor last asked of the agent. A pause may have run out."""
        return self.read_wish_until()[0]

    def read_wish_until(self) -> tuple[str, int]:
        """The same, and the Unix time at which a pause ends; 0 when it has no end."""
        try:
            wish, _, until = self.wish_path.read_text().strip().partition(" ")
            until_seconds = int(until or 0)
        except (FileNotFoundError, ValueError):
            return "run", 0
        if wish not in WISHES or 0 < until_seconds <= time.time():
            return "run", 0
        return wish, until_seconds

    def write_wish(self, wish: str, until_seconds: int = 0) -> None:
        """Ask the agent for something; it looks once a second. From `until_seconds` (Unix time) on it is `run`."""
        assert wish in WISHES
        text = f"{wish} {until_seconds}" if until_seconds else wish
        write_atomically(self.wish_path, text.encode() + b"\n")

    def load_cursor(self) -> int:
        """Number of the last message that was taken from the inbox."""
        try:
            return int(json.loads(self.cursor_path.read_bytes())["after"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return 0

    def save_cursor(self, after: int) -> None:
        """Remember which quote requests were answered. Losing it only repeats answers."""
        write_atomically(self.cursor_path, json.dumps({"after": after}).encode())


def open_donor(home: Path) -> DonorHome:
    """The donor in a person's directory. Raises: UserError when none is set up there."""
    donor_home = DonorHome(home / DIRECTORY_NAME)
    donor_home.check_exists()
    return donor_home


def read_settings(path: Path) -> Settings:
    """Raises: UserError that names the line at fault, or the setting that is impossible."""
    try:
        text = path.read_text()
        document = tomllib.loads(text)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read: {error}") from error
    try:
        settings = msgspec.convert(document, Settings)
    except msgspec.ValidationError as error:
        raise UserError(explain_conversion(path, text, str(error))) from None
    settings.check()
    return settings


class SettingsWatch:
    """What `donor.toml` says now, for an agent that runs: read anew when the file has changed, not more often."""

    def __init__(self, path: Path, settings: Settings) -> None:
        """`settings` are those that the agent started with."""
        self.settings = settings
        self._path = path
        self._seen: tuple[int, int, int] | None = (0, 0, 0)

    def read_change(self) -> Settings | None:
        """The settings to go on with, when they are others than before; else None.

        What needs a new start (`RESTART_NAMES`) stays as it was. Raises: UserError, once for each version of a file
        that makes no sense; the settings before stay in force.
        """
        try:
            status = self._path.stat()
            seen = status.st_mtime_ns, status.st_size, status.st_ino
        except OSError:
            seen = None
        if seen == self._seen:
            return None
        self._seen = seen
        fresh = read_settings(self._path)
        fresh = msgspec.structs.replace(fresh, **{name: getattr(self.settings, name) for name in RESTART_NAMES})
        if fresh == self.settings:
            return None
        self.settings = fresh
        return fresh
