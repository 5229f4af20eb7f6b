"""The commands of a donor: set up, measure, start. What will run is shown before anything does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.donor.cli_dispute import dispute
from node.donor.cli_jobs import earnings, jobs, status
from node.donor.cli_machine import doctor, selftest
from node.donor.cli_owner import finish, pause, resume, uninstall
from node.donor.cli_prefs import allow, deny, prefs
from node.errors import UserError
from node.terminal import confirm, emit, home_option, json_option, yes_option

if TYPE_CHECKING:
    from node.donor.hardware import Hardware
    from node.donor.settings import DonorHome, Settings

MEMORY_SHARE = 0.5
"""Of the machine's memory, what is lent unless the donor says otherwise."""
DISK_SHARE = 0.25
BYTES_PER_GB = 10**9

passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Encrypt donor.key; without one it is kept in the clear, mode 0600, so that the agent can start alone.",
)


@click.group()
def group() -> None:
    """Lend a machine: when, to whom, and what it earns."""


group.add_command(dispute)


@group.command()
@home_option
@click.option("--node", "node_url", required=True, metavar="URL", help="The node of the sponsoring institution.")
@click.option("--federation", metavar="ADDRESS", help="Refuse a node of any federation but this (almf1...).")
@click.option("--machine", help="Name in the public list of offers. Default: this host's name.")
@click.option("--cores", type=click.IntRange(1), help="Cores to lend. Default: all.")
@click.option("--memory", "memory_gb", type=float, help="GB of memory to lend. Default: half.")
@click.option("--disk", "disk_gb", type=float, help="GB of disk to lend. Default: a quarter of what is free.")
@click.option("--gpus", "gpu_count", type=click.IntRange(0), help="GPUs to lend. Default: all that are sound.")
@click.option("--class", "job_classes", multiple=True, help="Classes of jobs to take. Default: batch.")
@click.option("--tick", "tick_seconds", type=click.IntRange(1, 600), default=30, show_default=True,
              help="Seconds between two readings of the meter.")  # fmt: skip
@click.option(
    "--runtime", "runtimes", multiple=True, help="Packages to offer. Default: python-ml, and with GPUs python-gpu."
)
@passphrase_option
@yes_option
@json_option
def setup(
    home: Path,
    node_url: str,
    federation: str | None,
    machine: str | None,
    cores: int | None,
    memory_gb: float | None,
    disk_gb: float | None,
    gpu_count: int | None,
    job_classes: tuple[str, ...],
    tick_seconds: int,
    runtimes: tuple[str, ...],
    passphrase_file: Path | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Set this machine up for lending, after showing exactly what will run and how to stop it.

    Example: allmende donor setup --node https://node.example.org --cores 4 --memory 8
    """
    import platform

    from node.donor.calibrate import RUNTIME_FOR_CORES, RUNTIME_FOR_GPUS
    from node.donor.doctor import choose_lendable_gpus
    from node.donor.enrolling import make_donor
    from node.donor.hardware import find_hardware
    from node.donor.settings import DIRECTORY_NAME, DonorHome, Settings
    from node.served_charter import fetch_charter

    donor_home = DonorHome(home / DIRECTORY_NAME)
    if donor_home.settings_path.exists():
        raise UserError(f"a donor is set up in {donor_home.directory} already: edit donor.toml there to change it")
    found = find_hardware(donor_home.directory)
    _check_lendable(found, memory_gb, disk_gb, runtimes)
    gpus = choose_lendable_gpus(found.gpus, gpu_count)
    usual_runtimes = [RUNTIME_FOR_CORES, RUNTIME_FOR_GPUS] if gpus else [RUNTIME_FOR_CORES]
    served = fetch_charter(node_url, federation)
    founded, newest = served.founded, served.charters[max(served.charters)]
    settings = Settings(
        node_url=node_url,
        machine=machine or platform.node() or "machine",
        cores=min(cores or found.cores, found.cores),
        memory_bytes=round(memory_gb * BYTES_PER_GB) if memory_gb else round(found.memory_bytes * MEMORY_SHARE),
        disk_bytes=round(disk_gb * BYTES_PER_GB) if disk_gb else round(found.disk_free_bytes * DISK_SHARE),
        job_classes=sorted(set(job_classes or ("batch",))),
        runtimes=sorted(set(runtimes or usual_runtimes)),
        tick_seconds=tick_seconds,
        gpus=gpus,
        acceptable_use=newest.policy.acceptable_use.hex(),
    )
    settings.check()
    if not yes:
        for line in _iterate_consent(donor_home, settings, found, founded.charter.fields.name):
            click.echo(line, err=True)
    confirm("Lend this machine so?", yes)
    address = make_donor(donor_home, settings, founded, passphrase_file)
    document = {"address": address, "directory": str(donor_home.directory), "machine": settings.machine}
    lines = [
        f"The donor's address: {address}",
        f"Ask the institution at {node_url} to sponsor it. Then: `allmende donor selftest`, `allmende donor start`.",
    ]
    emit(document, lines, as_json)


def _check_lendable(found: Hardware, memory_gb: float | None, disk_gb: float | None, runtimes: tuple[str, ...]) -> None:
    """Raises: UserError when more is lent than there is, or packages that nobody knows."""
    from node.donor.runtimes import KNOWN_RUNTIMES

    for what, asked, there in (
        ("memory", memory_gb, found.memory_bytes / BYTES_PER_GB),
        ("free disk", disk_gb, found.disk_free_bytes / BYTES_PER_GB),
    ):
        if asked is not None and not 0 < asked <= there:
            raise UserError(f"this machine has {there:.1f} GB of {what}: lend a part of that, not {asked:g} GB")
    unknown = sorted(set(runtimes) - set(KNOWN_RUNTIMES))
    if unknown:
        raise UserError(f"no packages are called {', '.join(unknown)}: choose of {', '.join(KNOWN_RUNTIMES)}")


def _iterate_consent(donor_home: DonorHome, settings: Settings, found: Hardware, federation: str) -> Iterator[str]:
    yield f"What you agree to lend to the federation {federation}:"
    yield ""
    yield "  What runs      programs of people whom you don't know"
    yield f"  With           {settings.cores} cores, {settings.memory_bytes / 1e9:.1f} GB of memory,"
    yield f"                 {settings.disk_bytes / 1e9:.1f} GB of disk, at most {settings.wall_seconds_max} s a job"
    yield f"  Classes        {', '.join(settings.job_classes)}"
    yield f"  Packages       {', '.join(settings.runtimes)} (built once, by the self-test)"
    for one in found.gpus:
        what = f"{one.gpu.name}, {one.gpu.memory_bytes / 1e9:.1f} GB ({one.gpu.uuid})"
        if one.gpu.uuid in settings.gpus:
            yield f"  GPU            {what}, whole, to one job at a time"
        else:
            yield f"  Not lent       {what}{': ' if one.obstacle else ''}{one.obstacle}"
    yield f"  Use policy     SHA-256 {settings.acceptable_use[:16]}...; the institution gives you the text"
    yield "  Can't reach    the network, your files, your other processes, your rights (`selftest` checks it)"
    yield "  Risk           nobody can promise that a sandbox has no hole; lend no machine that holds secrets"
    yield f"  Talks to       {settings.node_url} only; no port is opened on this machine"
    yield f"  Keeps          everything in {donor_home.directory}; `allmende donor uninstall` leaves nothing"
    yield f"  Trust          you trust a payer with {settings.tick_seconds} s of work at a time"
    yield "  To stop        `allmende donor pause` stops jobs at once, Ctrl-C ends them, `finish` completes them"
    yield "  To choose      hours, limits and who may use it: `allmende donor prefs`"
    yield ""


@group.command()
@home_option
@passphrase_option
def start(home: Path, passphrase_file: Path | None) -> None:
    """Offer this machine and run jobs, until `finish` or Ctrl-C. Unfinished jobs are taken up first.

    Example: allmende donor start
    """
    import logging

    import trio

    from node.donor.serving import serve
    from node.donor.settings import open_donor
    from node.files import lock_directory

    donor_home = open_donor(home)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # One line for each long poll would bury what the donor wants to see.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with lock_directory(donor_home.directory, "donor agent"):
        donor_home.write_wish("run")
        trio.run(serve, donor_home, passphrase_file)


for command in (selftest, doctor, pause, resume, finish, prefs, allow, deny, status, jobs, earnings, uninstall):
    group.add_command(command)
