"""The owner's words to the agent: give the machine back, go on, finish; and taking everything off the machine."""

from __future__ import annotations

import time
from pathlib import Path

import click

from node.errors import UserError
from node.terminal import FILE, confirm, emit, format_moment, home_option, json_option, parse_duration, yes_option


@click.command()
@click.option("--for", "duration", metavar="TIME", help="Go on by itself after so long, like 30m or 2h.")
@home_option
@json_option
def pause(duration: str | None, home: Path, as_json: bool) -> None:
    """Give my machine back: suspend running jobs at once and take no more, until `resume` or the next `start`.

    Example: allmende donor pause --for 2h
    """
    from node.donor.settings import open_donor

    donor_home = open_donor(home)
    seconds = parse_duration(duration) if duration else 0
    if duration and not seconds:
        raise UserError("a pause of no length is none: leave --for out, or name a time")
    until = int(time.time()) + seconds if seconds else 0
    donor_home.write_wish("pause", until)
    wait = donor_home.load_settings().suspend_seconds_max
    if wait:
        lines = [
            "The agent stops its jobs within a second; nothing is charged while they wait.",
            f"After {wait} s they end, paid up to their last checkpoint.",
        ]
    else:
        lines = ["The agent ends its jobs within seconds; they are paid up to their last checkpoint."]
    if until:
        lines.append(f"The agent goes on by itself at {format_moment(until)}.")
    emit({"wish": "pause", "until_seconds": until or None}, lines, as_json)


@click.command()
@home_option
@json_option
def resume(home: Path, as_json: bool) -> None:
    """Take jobs again after `pause` or `finish`; those that wait go on.

    Example: allmende donor resume
    """
    from node.donor.settings import open_donor

    open_donor(home).write_wish("run")
    emit({"wish": "run", "until_seconds": None}, ["The agent takes jobs again."], as_json)


@click.command()
@home_option
@json_option
def finish(home: Path, as_json: bool) -> None:
    """Complete the current jobs, take no more, then stop the agent.

    Example: allmende donor finish
    """
    from node.donor.settings import open_donor

    open_donor(home).write_wish("finish")
    lines = ["The agent stops when its jobs are done and settled."]
    emit({"wish": "finish", "until_seconds": None}, lines, as_json)


@click.command()
@click.option("--keep-key", type=FILE, help="Copy the donor's key there first: it holds what was earned.")
@home_option
@yes_option
@json_option
def uninstall(keep_key: Path | None, home: Path, yes: bool, as_json: bool) -> None:
    """Remove the donor from this machine and leave nothing. Refuses while somebody's credits hang on a job here.

    Example: allmende donor uninstall --keep-key donor.key
    """
    from node.donor.earnings import read_entry, sum_earnings
    from node.donor.enrolling import read_address
    from node.donor.job_file import JobFile
    from node.donor.settings import open_donor
    from node.donor.uninstalling import remove_donor
    from node.files import lock_directory
    from protocol.credits import format_credits

    donor_home = open_donor(home)
    with lock_directory(donor_home.directory, "donor agent"):
        charter = donor_home.load_charter().charter
        entries = [read_entry(charter, job.document) for job in JobFile.load_all(donor_home.jobs)]
        if open_jobs := sum(entry.is_open for entry in entries):
            raise UserError(
                f"{open_jobs} jobs are not settled: `allmende donor start`, then `allmende donor finish`, and try again"
            )
        earned = sum(line.millicredits for line in sum_earnings(entries))
        address = read_address(donor_home)
        if not yes:
            click.echo(f"Everything in {donor_home.directory} goes, the key of {address} with it.", err=True)
            if earned and keep_key is None:
                click.echo(
                    f"{format_credits(earned)} credits were earned on it: whoever lacks the key can't spend them "
                    "(--keep-key FILE).",
                    err=True,
                )
        confirm("Remove the donor from this machine?", yes)
        remove_donor(donor_home, keep_key)
    document = {"removed": str(donor_home.directory), "key": str(keep_key) if keep_key else None}
    lines = [f"Removed {donor_home.directory}."]
    if keep_key:
        lines.append(f"The key of {address} is in {keep_key}: keep it safe.")
    emit(document, lines, as_json)
