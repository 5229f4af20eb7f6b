"""The command by which a donor says on the ledger that a job's payer broke its rules."""

from __future__ import annotations

from pathlib import Path

import click

from node.errors import UserError
from node.terminal import FILE, confirm, dry_run_option, emit, home_option, json_option, yes_option

REASONS = ("inputs-unusable", "job-abusive", "meter-unanswered")
"""As `protocol.disputes` has them; written out, so that a command starts without loading it."""


@click.command()
@click.argument("job_id", metavar="JOB")
@click.option("--reason", type=click.Choice(REASONS), required=True, help="What the payer did.")
@click.option("--out", type=FILE, help="Write the evidence file there, too.")
@home_option
@click.option("--passphrase-file", type=FILE, metavar="FILE", help="Of donor.key, if it is encrypted.")
@dry_run_option
@yes_option
@json_option
def dispute(
    job_id: str,
    reason: str,
    out: Path | None,
    home: Path,
    passphrase_file: Path | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Say on the ledger, for ever, that the payer of a job broke its rules.

    A file with what this donor keeps of the job (quote, meter, receipts; nothing of its inputs or results) is
    published at the node, and its hash stands in the record. None of these reasons can be proven by a file: people
    judge them. A job is disputed once, at most 90 days after it ended.

    Example: allmende donor dispute 3fa2c81b90 --reason job-abusive
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from node import client
    from node.addresses import Kind, encode_address
    from node.donor.disputing import build_donor_evidence, dispute_job, find_job
    from node.donor.enrolling import load_donor_key
    from node.donor.settings import open_donor
    from node.evidence import iterate_job_verdict
    from node.files import write_atomically
    from node.served_charter import verify_charter
    from protocol.disputes import DisputeReason

    donor_home = open_donor(home)
    job = find_job(donor_home.jobs, job_id)
    settings, pinned = donor_home.load_settings(), donor_home.load_charter().charter
    link = client.NodeClient(settings.node_url)
    try:
        charters = verify_charter(link.get_charter(), settings.node_url).charters
        if charters[0].federation != pinned.federation:
            raise UserError(f"{settings.node_url} serves another federation than this donor's: set node_url right")
        chosen = DisputeReason[reason.upper().replace("-", "_")]
        evidence = build_donor_evidence(link, charters, job, chosen)
        if out is not None:
            write_atomically(out, evidence.content, mode=0o644)
        lines = [f"Job {job.document.conversation[:10]}, {job.document.state}", *iterate_job_verdict(evidence.verdict)]
        document = {
            "job": job.document.conversation[:10],
            "reason": evidence.verdict.reason.name.lower().replace("_", "-"),
            "evidence": evidence.digest.hex(),
        }
        if dry_run:
            emit(document | {"dry_run": True}, [*lines, "Nothing was signed or sent."], as_json)
            return
        if not yes:
            for line in lines:
                click.echo(line, err=True)
        confirm("Say so on the ledger, for ever, and publish this file?", yes)
        key = Ed25519PrivateKey.from_private_bytes(load_donor_key(donor_home, passphrase_file).seed)
        name = encode_address(Kind.RECORD, dispute_job(link, charters, key, job, evidence))
        emit(document | {"record": name}, [f"Disputed: {name}"], as_json)
    finally:
        link.close()
