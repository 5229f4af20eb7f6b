"""The command by which a payer says on the ledger that a job's donor broke its rules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.terminal import FILE, emit, explain_interruption
from node.wallet.cli_unlock import tell_lost
from node.wallet.options import Signing, signing_options, wait_option

if TYPE_CHECKING:
    from node.wallet.disputing import EvidenceFile
    from node.wallet.job_records import WalletJob

REASONS = ("amount-not-due", "work-lost", "results-wrong", "results-withheld")
"""As `protocol.disputes` has them; written out, so that a command starts without loading it."""


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("--reason", type=click.Choice(REASONS), help="What the donor did. Default: what your evidence proves.")
@click.option("--rerun", "rerun_ids", multiple=True, metavar="ID", help="Another job that did the same work, to show.")
@click.option("--show-results", is_flag=True, help="Put the keys into the file that open the results: for everybody.")
@click.option("--out", type=FILE, help="Write the evidence file there, too.")
@wait_option
@signing_options
def dispute(
    job_id: str,
    reason: str | None,
    rerun_ids: tuple[str, ...],
    show_results: bool,
    out: Path | None,
    signing: Signing,
    wait_seconds: float,
) -> None:
    """Say on the ledger, for ever, that the job's donor broke its rules.

    A file with what this wallet can show (quote, meter, receipts; no inputs, logs or results) is published at the node,
    and its hash stands in the record. No credits move: it counts against the donor's reliability, and people can judge
    it. A job is disputed once, at most 90 days after it ended.

    Example: allmende job dispute 3fa2c81b90 --reason results-withheld
    """
    from node.files import write_atomically
    from node.wallet.disputing import build_evidence, dispute_job
    from node.wallet.job_ends import look_for_end
    from node.wallet.job_records import load_job
    from protocol.disputes import DisputeReason

    with signing.open_wallet() as wallet:
        job = load_job(wallet, job_id)
        look_for_end(wallet, job)
        chosen = DisputeReason[reason.upper().replace("-", "_")] if reason else None
        reruns = [load_job(wallet, other) for other in rerun_ids]
        file = build_evidence(wallet, job, chosen, reruns, shows_results=show_results)
        if out is not None:
            write_atomically(out, file.content, mode=0o644)
        lines = list(_iterate_evidence(job, file))
        document = _describe(job, file) | {"file": str(out) if out else None}
        if signing.dry_run:
            emit(document | {"dry_run": True}, [*lines, "Nothing was signed or sent."], signing.as_json)
            return
        if not signing.yes:
            for line in lines:
                click.echo(line, err=True)
        signing.confirm("Say so on the ledger, for ever, and publish this file?")
        key = wallet.unlock(signing.passphrase)
        with explain_interruption(f"run `allmende job dispute {job.job_id}` again: it goes on where it was"):
            done = dispute_job(wallet, key, job, file, wait_seconds)
        tell_lost(done.lost)
        from node.addresses import Kind, encode_address

        name = encode_address(Kind.RECORD, done.record)
        document |= {
            "record": name,
            "evidence": done.evidence.stem,
            "publishing_problem": done.publishing_problem or None,
        }
        emit(document, _iterate_end(name, done.evidence, done.publishing_problem), signing.as_json)


def _describe(job: WalletJob, file: EvidenceFile) -> dict[str, Any]:
    from node.evidence import describe_reason

    verdict = file.verdict
    return {
        "job": job.job_id,
        "reason": describe_reason(verdict.reason),
        "evidence": file.digest.hex(),
        "evidence_bytes": len(file.content),
        "proven": [claim.name.lower() for claim in verdict.claims],
        "is_reason_proven": verdict.is_reason_proven,
    }


def _iterate_evidence(job: WalletJob, file: EvidenceFile) -> Iterator[str]:
    from node.evidence import iterate_job_verdict

    yield f"Job {job.job_id} ({job.name}), {job.state}"
    yield from iterate_job_verdict(file.verdict)
    yield f"The evidence file has {len(file.content)} bytes, SHA-256 {file.digest.hex()}."


def _iterate_end(name: str, path: Path, problem: str) -> Iterator[str]:
    yield f"Disputed: {name}"
    yield f"Evidence: {path}"
    if problem:
        yield f"Not published: {problem}. Run the command again to try once more."
