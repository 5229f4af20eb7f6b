"""The command that verifies anew: the whole ledger, or a donor's charges against its cluster's accounting."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.config import NodeHome
from node.errors import UserError
from node.operator.cli_ledger import verify_ledger
from node.operator.homes import node_home_option
from node.terminal import emit, json_option

if TYPE_CHECKING:
    from node.donor.executors.slurm_commands import AccountedJob
    from node.donor.settings import Settings
    from node.donor.slurm_audit import Comparison

EXIT_FAILED = 1
DAYS_DEFAULT = 30
"""How far back to look at Slurm when the donor has no job files."""


@click.command()
@node_home_option
@click.option("--against", type=click.Choice(["slurm"]), help="Compare a donor's settled charges with this, too.")
@click.option(
    "--donor-home", type=click.Path(file_okay=False, path_type=Path), help="With --against: the donor's home."
)
@click.option("--url", help="With --against: believe the running node at this address, instead of verifying all anew.")
@json_option
@click.pass_context
def audit(
    context: click.Context, home: NodeHome, against: str | None, donor_home: Path | None, url: str | None, as_json: bool
) -> None:
    """Verify the whole ledger anew, from the genesis charter on: signatures, links, sums, roots. Stop the node first.

    With --against slurm, derive every charge of this institution's donor from what Slurm's accounting says that the job
    took, and list what differs; exit status 1 when something does.

    \b
    Example:
        allmende node audit
        allmende node audit --against slurm --donor-home ~/.allmende --url https://node.a.example
    """
    if (against is None) != (donor_home is None) or (url is not None and against is None):
        raise UserError("to compare with a cluster give --against slurm and --donor-home; --url goes with these only")
    if donor_home is None:
        _audit_ledger(home, as_json)
        return
    comparison = _compare(home, donor_home, url)
    _show(comparison, as_json)
    if comparison.differences:
        context.exit(EXIT_FAILED)


def _audit_ledger(home: NodeHome, as_json: bool) -> None:
    examination = verify_ledger(home)
    result = {
        "batches": examination.batch_count,
        "records": examination.record_count,
        "checkpoints": examination.checkpoint_count,
        "state_root": examination.replica.compute_state_root().hex(),
        "problems": examination.problems,
    }
    lines = [
        f"Sound: {result['batches']} batches, {result['records']} records, {result['checkpoints']} checkpoints.",
        f"State {result['state_root']}",
    ]
    emit(result, lines, as_json)


def _compare(home: NodeHome, donor_directory: Path, url: str | None) -> Comparison:
    """Raises: UserError when the ledger does not hold, or a side can't be read."""
    from node.addresses import Kind, decode_address
    from node.donor.enrolling import read_address
    from node.donor.job_file import JobFile
    from node.donor.settings import DIRECTORY_NAME, DonorHome
    from node.donor.slurm_audit import compare, find_first_moment, find_hold

    donor = DonorHome(donor_directory / DIRECTORY_NAME)
    settings, charter = donor.load_settings(), donor.load_charter().charter
    documents = [job.document for job in JobFile.load_all(donor.jobs)]
    accounted = _ask_slurm(settings, find_first_moment(charter, documents))
    address = read_address(donor)
    if url is None:
        paid = _read_verified(home, decode_address(Kind.ACCOUNT, address))
    else:
        holds = {document.hold for document in documents if document.hold}
        holds |= {hold for job in accounted if (hold := find_hold(job)) is not None}
        paid = _ask_node(home, url, address, holds)
    return compare(charter, documents, accounted, paid)


def _ask_slurm(settings: Settings, since_seconds: float | None) -> list[AccountedJob]:
    """All that Slurm's accounting has of the donor's jobs since its oldest one (Unix time). Raises: UserError."""
    import trio

    from node.donor.executors.slurm_commands import SlurmCommands, SlurmSilent

    if settings.slurm is None:
        raise UserError("the donor's settings have no table [slurm]: its jobs run on no cluster")
    commands = SlurmCommands(tuple(settings.slurm.prefix), settings.slurm.poll_seconds)
    if since_seconds is None:
        since_seconds = time.time() - DAYS_DEFAULT * 86400
    try:
        user = Path(settings.slurm.shared_directory).stat().st_uid
        return trio.run(commands.list_accounted, since_seconds, user)
    except (SlurmSilent, OSError) as error:
        raise UserError(f"Slurm's accounting can't be read: {error}") from None


def _read_verified(home: NodeHome, donor: bytes) -> dict[bytes, int | None]:
    """Every hold, and what this donor was paid for it, from the ledger verified anew."""
    from protocol.states import HoldPhase

    holds = verify_ledger(home).replica.ledger.holds
    return {
        name: state.paid if state.phase is HoldPhase.SETTLED and state.payee == donor else None
        for name, state in holds.items()
    }


def _ask_node(home: NodeHome, url: str, donor: str, holds: set[bytes]) -> dict[bytes, int | None]:
    """The same as a running node tells it, of the named holds and the newest ones."""
    from node.addresses import Kind, decode_address, encode_address
    from node.operator.connection import connect

    with connect(home, url) as client:
        named = [client.get_job(encode_address(Kind.RECORD, hold)) for hold in sorted(holds)]
        found = [job for job in (*named, *client.get_jobs()) if job is not None]
    return {
        decode_address(Kind.RECORD, job.hold): job.paid if job.state == "SETTLED" and job.payee == donor else None
        for job in found
    }


def _show(comparison: Comparison, as_json: bool) -> None:
    differences = [
        {"hold": difference.hold.hex(), "kind": difference.kind, "detail": difference.detail}
        for difference in comparison.differences
    ]
    result = {
        "compared": comparison.compared,
        "derived_millicredits": comparison.derived,
        "paid_millicredits": comparison.paid,
        "underpaid": comparison.underpaid,
        "differences": differences,
    }
    lines = [
        f"{comparison.compared} settled charges compared: {comparison.derived} millicredits by Slurm's accounting, "
        f"{comparison.paid} paid.",
        *(f"{entry['hold'][:10]}  {entry['kind']:10} {entry['detail']}" for entry in differences),
        f"{len(differences)} differences." if differences else "No differences.",
    ]
    emit(result, lines, as_json)
