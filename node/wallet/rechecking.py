"""The same job once more, on another donor's machine: do both come to the same results?

Nothing proves that a result was computed as asked (spec 12.8). But a donor that invents results is found out when a
stranger computes the same. A program that uses chance, time or the order of its threads may differ honestly.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from node.bundles import list_bundle
from node.errors import UserError
from node.wallet.job_inputs import JobInputs, pack_inputs
from node.wallet.job_records import WalletJob, get_outputs_path
from node.wallet.job_spec import read_job_file
from node.wallet.jobs import Choice, JobPlan, plan_job
from node.wallet.retrying import list_runs

if TYPE_CHECKING:
    from node.wallet.wallet import Wallet


class Comparison(NamedTuple):
    """Paths of result files, each list in order."""

    same: list[str]
    different: list[str]
    only_first: list[str]
    only_second: list[str]

    @property
    def is_equal(self) -> bool:
        """True when both made the same files."""
        return not (self.different or self.only_first or self.only_second)


def compare_results(first: bytes, second: bytes) -> Comparison:
    """Two bundles of results, file by file. Raises: InvalidInput when one is no bundle."""
    one, other = list_digests(first), list_digests(second)
    both = sorted(one.keys() & other.keys())
    return Comparison(
        [path for path in both if one[path] == other[path]],
        [path for path in both if one[path] != other[path]],
        sorted(one.keys() - other.keys()),
        sorted(other.keys() - one.keys()),
    )


def list_digests(bundle: bytes) -> dict[str, str]:
    """SHA-256, in hex, of each file of a bundle, by path. Raises: InvalidInput."""
    view = memoryview(bundle)
    return {
        entry.path: hashlib.sha256(view[entry.offset : entry.offset + entry.size]).hexdigest()
        for entry in list_bundle(view)
        if not entry.is_directory
    }


def plan_recheck(wallet: Wallet, job: WalletJob, choice: Choice) -> tuple[JobPlan, JobInputs]:
    """Where the same inputs would run again: never at a donor that had a part in the results.

    Raises: UserError when there are no results, the inputs can't be had as they were, or no other donor can do it.
    """
    if not get_outputs_path(wallet, job).exists():
        raise UserError(f"job {job.job_id} has no results here ({job.state}): there is nothing to compare with")
    runs = list_runs(wallet, job)
    needs = runs[0].needs
    if needs is None or not job.path:
        raise UserError(f"job {job.job_id} was not made from a job file: it can't be run again")
    spec = read_job_file(Path(job.path))
    inputs = pack_inputs(spec)
    if inputs.source_digest != job.source_digest:
        raise UserError(
            f"what {job.path} names (files, settings or secrets) has changed since job {job.job_id} ran: put it "
            "back to compare, or run it anew"
        )
    excluded = choice.excluded | {run.decode_offer(wallet).donor_key for run in runs}
    needs = replace(needs, amount_max=spec.amount_max)
    plan = plan_job(wallet, needs, choice._replace(excluded=excluded))
    return plan, inputs._replace(recheck_of=job.job_id)
