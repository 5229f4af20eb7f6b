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
from node.wallet.job_records import WalletJob, load_job
from node.wallet.job_spec import read_job_file
from node.wallet.job_turns import leave_note
from node.wallet.jobs import open_job, plan_job
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
        path = write_job(folder, number, end, self._random)
        started = time.monotonic()
        job = self._open(path)
        watcher = Watcher(look=self._cancel if end is JobState.CANCELLED else lambda _: None)
        self._insist(lambda: run_to_end(self._wallet, self._key, job, self._connect, watcher), job, watcher)
        job = load_job(self._wallet, job.job_id)
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

    def _open(self, path: Path) -> WalletJob:
        """A quote from whoever has room; machines are busy, and agents dead, now and then."""
        needs = read_job_file(path)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return open_job(self._wallet, plan_job(self._wallet, needs), self._connect)
            except UserError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(self._random.uniform(0.2, 2))

    def _insist(self, begin: object, job: WalletJob, watcher: Watcher) -> None:
        """Follow the job to its end, however often a node goes away meanwhile."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        step = begin
        while True:
            try:
                assert callable(step)
                step()
                return
            except UserError as error:
                if time.monotonic() > deadline:
                    raise
                print(f"job {job.job_id}: {error}", file=sys.stderr, flush=True)
                time.sleep(self._random.uniform(0.5, 2))
                step = lambda: go_on(self._wallet, job.job_id, self._connect, watcher)  # noqa: E731  # the next try

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
