"""What this machine did for others, on the command line: its state, its jobs, what they earned."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.terminal import emit, format_date, format_moment, home_option, json_option

if TYPE_CHECKING:
    from node.donor.earnings import JobEntry
    from node.donor.settings import DonorHome

JOBS_SHOWN = 10
CONVERSATION_CHARACTERS = 10


@click.command()
@home_option
@json_option
def status(home: Path, as_json: bool) -> None:
    """Show what is lent, the last jobs, and what they earned.

    Example: allmende donor status
    """
    from node.donor.earnings import sum_earnings
    from node.donor.enrolling import read_address
    from node.donor.settings import open_donor
    from protocol.credits import format_credits

    donor_home = open_donor(home)
    settings, score = donor_home.load_settings(), donor_home.load_score()
    entries = _read_entries(donor_home)
    wish, until = donor_home.read_wish_until()
    earned = sum(line.millicredits for line in sum_earnings(entries))
    document = {
        "address": read_address(donor_home),
        "machine": settings.machine,
        "wish": wish,
        "until_seconds": until or None,
        "weight": score.weight if score else None,
        "earned_millicredits": earned,
        "jobs": [
            {
                "job": entry.conversation[:CONVERSATION_CHARACTERS],
                "state": entry.state,
                "paid_millicredits": entry.millicredits if entry.epoch else None,
            }
            for entry in entries
        ],
    }
    until_text = f" until {format_moment(until)}" if until else ""
    lines = [
        f"{settings.machine}: {wish}{until_text}, weight {document['weight'] or 'not measured'}",
        f"Address: {document['address']}",
        f"Earned here: {format_credits(earned)} credits in {len(entries)} jobs",
        *(f"  {entry.conversation[:CONVERSATION_CHARACTERS]}  {entry.state}" for entry in entries[-JOBS_SHOWN:]),
    ]
    emit(document, lines, as_json)


@click.command()
@click.option("--all", "is_all", is_flag=True, help=f"Not only the last {JOBS_SHOWN}.")
@home_option
@json_option
def jobs(is_all: bool, home: Path, as_json: bool) -> None:
    """List running and past jobs: who paid, which institution vouches for the person, state, earnings.

    Example: allmende donor jobs --all
    """
    from node.addresses import Kind, encode_address
    from node.donor.settings import open_donor

    entries = _read_entries(open_donor(home))
    shown = entries if is_all else entries[-JOBS_SHOWN:]
    document = {
        "jobs": [
            {
                "job": entry.conversation,
                "account": encode_address(Kind.ACCOUNT, entry.account),
                "institutions": [{"number": found.number, "name": found.name} for found in entry.institutions],
                "state": entry.state,
                "detail": entry.detail,
                "quoted_until_seconds": entry.valid_until,
                "is_open": entry.is_open,
                "paid_millicredits": entry.millicredits if entry.epoch else None,
            }
            for entry in shown
        ]
    }
    lines = [line for entry in shown for line in _iterate_job(entry)]
    emit(document, lines or ["No job was here yet."], as_json)


def _iterate_job(entry: JobEntry) -> Iterator[str]:
    from node.donor.acceptance import describe_payer
    from protocol.credits import format_credits

    earned = f"{format_credits(entry.millicredits)} credits" if entry.epoch else "not settled" * entry.is_open
    job, moment = entry.conversation[:CONVERSATION_CHARACTERS], format_moment(entry.valid_until)
    yield f"{job}  {moment}  {entry.state:<13} {earned}"
    yield f"    {describe_payer(entry.account, entry.institutions)}"
    if entry.detail:
        yield f"    {entry.detail}"


@click.command()
@home_option
@json_option
def earnings(home: Path, as_json: bool) -> None:
    """Show what jobs on this machine earned, by epoch of their settlement.

    Example: allmende donor earnings --json
    """
    from node.donor.earnings import sum_earnings
    from node.donor.settings import open_donor
    from protocol.credits import format_credits

    donor_home = open_donor(home)
    charter = donor_home.load_charter().charter
    entries = _read_entries(donor_home)
    sums = sum_earnings(entries)
    waiting = sum(entry.millicredits for entry in entries if entry.is_open)
    document = {
        "epochs": [
            {
                "epoch": line.epoch,
                "until_seconds": charter.compute_epoch_end(line.epoch),
                "jobs": line.jobs,
                "millicredits": line.millicredits,
            }
            for line in sums
        ],
        "millicredits": sum(line.millicredits for line in sums),
        "open_millicredits_max": waiting,
    }
    lines = [
        f"Epoch {line.epoch}, to {format_date(charter.compute_epoch_end(line.epoch))}: "
        f"{format_credits(line.millicredits)} credits, {line.jobs} jobs"
        for line in sums
    ]
    lines.append(f"In all: {format_credits(sum(line.millicredits for line in sums))} credits")
    if waiting:
        lines.append(f"Jobs that are not settled may bring up to {format_credits(waiting)} more")
    emit(document, lines, as_json)


def _read_entries(donor_home: DonorHome) -> list[JobEntry]:
    """Every job that is kept here, in the order in which they were asked for."""
    from node.donor.earnings import read_entry
    from node.donor.job_file import JobFile

    charter = donor_home.load_charter().charter
    entries = [read_entry(charter, job.document) for job in JobFile.load_all(donor_home.jobs)]
    return sorted(entries, key=lambda entry: (entry.valid_until, entry.conversation))
