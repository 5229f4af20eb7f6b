"""One wallet that runs one job after the other, and goes on whatever is killed meanwhile. A process of its own.

python -m scripts.job_loads.customer HOME JOBS SEED OUT: a line of JSON in OUT for each job that is over.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from node.errors import UserError
from node.wallet.calling import Connections
from node.wallet.job_records import WalletJob, list_jobs, load_job
from node.wallet.job_spec import JobSpec, read_job_file
from node.wallet.job_turns import leave_note
from node.wallet.jobs import Choice, open_job, plan_job
from node.wallet.offers import read_offers
from node.wallet.running import Watcher, go_on, run_to_end
from node.wallet.wallet import Wallet
from protocol.metering import JobState
from scripts.job_loads.ends import draw_end, write_job

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PATIENCE_SECONDS = 900


class Customer:
    """A wallet and its jobs."""

    def __init__(self, wallet: Wallet, connect: Connections, key: Ed25519PrivateKey, random: Random) -> None:
        self._wallet = wallet
        self._connect = connect
        self._key = key
        self._random = random

    def run(self, folder: Path, number: int) -> dict[str, object]:
        """One job to its end; what is to be written down of it."""
        end = draw_end(self._random)
        needs = read_job_file(write_job(folder, number, end, self._random))
        started = time.monotonic()
        job = self._insist(needs, Watcher(look=self._cancel if end is JobState.CANCELLED else lambda _: None))
        receipt = job.decode_receipt(self._wallet)
        return {
            "job": job.job_id,
            "hold": job.hold.hex(),
            "wanted": end.value,
            "ended": receipt.state.value if receipt else None,
            "state": job.state,
            "donor": job.decode_offer(self._wallet).machine,
            "paid_millicredits": max(0, job.paid),
            "dispute": job.dispute,
            "seconds": round(time.monotonic() - started, 2),
        }

    def _insist(self, needs: JobSpec, watcher: Watcher) -> WalletJob:
        """A job that is over. Machines are busy, and agents and nodes dead, now and then: what was paid for is followed
        to its end, what never was is asked for anew.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        job: WalletJob | None = None
        while True:
            try:
                if job is None:
                    job = open_job(self._wallet, plan_job(self._wallet, needs, self._choose()), self._connect)
                    run_to_end(self._wallet, self._key, job, self._connect, watcher)
                else:
                    go_on(self._wallet, job.job_id, self._connect, watcher)
                return load_job(self._wallet, job.job_id)
            except UserError as error:
                if time.monotonic() > deadline:
                    raise
                print(f"{time.time():.1f} job {job.job_id if job else '-'}: {error}", file=sys.stderr, flush=True)
                time.sleep(self._random.uniform(0.2, 2))
            if job is not None and all(kept.job_id != job.job_id for kept in list_jobs(self._wallet)):
                job = None

    def _choose(self) -> Choice:
        """Any machine, so that none stands idle because another one is cheaper."""
        machines = sorted({offer.machine for offer in read_offers(self._wallet)})
        return Choice(self._random.choice(machines) if machines else "")

    def _cancel(self, job: WalletJob) -> None:
        if job.state == JobState.RUNNING:
            leave_note(self._wallet, job, "drawn to be cancelled")


def main(home: Path, jobs: int, seed: int, out: Path) -> None:
    """Run them all."""
    with Wallet.open(home) as wallet, Connections(wallet) as connect, out.open("a") as file:
        customer = Customer(wallet, connect, wallet.unlock(None), Random(seed))
        for number in range(jobs):
            print(json.dumps(customer.run(home / "load", number)), file=file, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
