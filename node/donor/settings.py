"""Where a donor's files lie, and what the donor decided to lend.

donor.toml     what is lent, and where; edit it and start the agent again
donor.key      the account that earns; signs offers, quotes, ticks and settlements
seal.key       opens what is sealed to this machine
charter        the federation's founding document, pinned at set-up: everything is checked against it
score.json     what the last self-test measured
jobs/          one folder a job: what was promised, metered and signed, each step on disk before it is taken
runtimes/      packages that jobs may use      sandbox/   where jobs run
wish           `pause` or `finish`, written by those commands and read by the agent
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import msgspec

from node.config import format_toml
from node.donor.executors.slurm_settings import SlurmSettings
from node.errors import UserError
from node.files import write_atomically
from protocol.charter import FoundedCharter, decode_founded_charter
from protocol.errors import InvalidInput

DIRECTORY_NAME = "donor"
WISHES = frozenset({"run", "pause", "finish"})
EXECUTORS = ("sandbox", "slurm")
"""What may run the jobs: this machine itself, or a cluster."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `donor.toml` says."""

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
    executor: str = "sandbox"
    slurm: SlurmSettings | None = None

    def check(self) -> None:
        """Raise `UserError` when a value makes no sense."""
        for name in ("cores", "memory_bytes", "disk_bytes", "wall_seconds_max", "tick_seconds", "grace_seconds"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} in donor.toml must be above 0")
        if not self.job_classes:
            raise UserError("donor.toml lists no job_classes: nobody could run anything")
        if self.executor not in EXECUTORS:
            raise UserError(f"executor in donor.toml must be one of {', '.join(EXECUTORS)}, not {self.executor!r}")
        if self.executor == "slurm" and self.slurm is None:
            raise UserError("executor in donor.toml is slurm: say in a table [slurm] how to reach the cluster")
        if self.slurm is not None:
            self.slurm.check()


_COMMENTS = {
    "node_url": "the node of the institution that sponsors this machine",
    "machine": "shown in the public list of offers",
    "cores": "what jobs may use at most, all together",
    "wall_seconds_max": "longest job",
    "tick_seconds": "time between two readings of the meter: what you trust a payer with",
    "grace_seconds": "how long you may take to settle a job",
    "executor": "what runs the jobs: sandbox (this machine) or slurm (a cluster, see the table [slurm])",
}


class Score(msgspec.Struct, frozen=True):
    """What the self-test measured."""

    weight: int
    gigaflops: float
    """Float32 matrix product."""
    bandwidth_gb_per_second: float
    memory_gb: float
    measured_at_seconds: int


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
        try:
            settings = msgspec.convert(tomllib.loads(self.settings_path.read_text()), Settings)
        except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
            raise UserError(f"{self.settings_path} can't be read: {error}") from error
        settings.check()
        return settings

    def save_settings(self, settings: Settings) -> None:
        """Write `donor.toml`, with a comment where a value needs one."""
        lines = []
        values = msgspec.to_builtins(settings)
        cluster = values.pop("slurm")
        for name, value in values.items():
            if name in _COMMENTS:
                lines.append(f"# {_COMMENTS[name]}")
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
        """`run`, `pause` or `finish`: what the donor last asked of the agent."""
        try:
            wish = self.wish_path.read_text().strip()
        except FileNotFoundError:
            return "run"
        return wish if wish in WISHES else "run"

    def write_wish(self, wish: str) -> None:
        """Ask the agent for something; it looks once a second."""
        assert wish in WISHES
        write_atomically(self.wish_path, wish.encode() + b"\n")

    def load_cursor(self) -> int:
        """Number of the last message that was taken from the inbox."""
        try:
            return int(json.loads(self.cursor_path.read_bytes())["after"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return 0

    def save_cursor(self, after: int) -> None:
        """Remember which quote requests were answered. Losing it only repeats answers."""
        write_atomically(self.cursor_path, json.dumps({"after": after}).encode())
