"""What a program asks a node over HTTP: one method for each route.

What a node answers is not trusted: it is decoded into the shapes of `node/api.py` and `node/job_api.py`, bounded in
size and time, and what matters in it (records, receipts, offers) is verified by the caller. How calls fail is said in
`node/http_calls.py`.
"""

from __future__ import annotations

import time
from urllib.parse import quote

import msgspec

from node import api, job_api
from node.errors import Unreachable, UserError
from node.http_calls import ANSWER_SECONDS_MAX, BLOB_SECONDS_MAX, RETRY_PAUSES_SECONDS, HttpCaller, add_query, decode

ARCHIVE_SECONDS_MAX = 6 * 3600.0
"""A ledger of years over a slow line."""


class NodeClient(HttpCaller):
    """The client of one node, at an http:// or https:// address or at the path of its operator's socket."""

    # -- the node and the ledger --------------------------------------------------------------------------------------

    def get_health(self) -> api.Health:
        """Whether the node answers."""
        return self._read(api.Health, "/health")

    def get_status(self) -> api.Status:
        """How far the node is, and whom it is connected to."""
        return self._read(api.Status, "/status")

    def get_evidence(self) -> list[api.Evidence]:
        """Proofs of wrongdoing; the caller verifies them."""
        return self._read(list[api.Evidence], "/evidence")

    def get_charter(self) -> api.Charter:
        """The constitution; the caller pins the federation and checks the founding document."""
        return self._read(api.Charter, "/charter")

    def get_checkpoint(self) -> api.Checkpoint | None:
        """The last state that a quorum certified, if there is one. Its proof is the caller's to check."""
        return self._find(api.Checkpoint, "/checkpoint")

    def get_snapshot(self, bytes_max: int) -> bytes:
        """The whole certified state with its proof, which is the caller's to check."""
        return self._call("GET", "/checkpoint/facts", bytes_max=bytes_max, answer_seconds=BLOB_SECONDS_MAX)[1]

    def get_account_proof(self, address: str) -> api.AccountProof | None:
        """Proof of what an account held at the last checkpoint, if there is one."""
        return self._find(api.AccountProof, f"/accounts/{_quote(address)}/proof")

    def get_account(self, address: str) -> api.Account:
        """What an account holds."""
        return self._read(api.Account, f"/accounts/{_quote(address)}")

    def get_account_records(self, address: str, limit: int = 50, before: int | None = None) -> api.RecordPage:
        """What touched an account, newest first."""
        return self._read(api.RecordPage, f"/accounts/{_quote(address)}/records", limit=limit, before=before)

    def get_record(self, record_id: str, wait: int = 0) -> api.Record | None:
        """A record, or None when the node knows none. With `wait`, as soon as it is final."""
        return self._find(api.Record, f"/records/{_quote(record_id)}", wait)

    def submit_record(self, record: bytes, wait: int = 0) -> api.Submitted:
        """Hand in a record, and wait up to so many seconds for it to become final. Raises: RecordRefused."""
        path = add_query("/records", wait=wait or None)
        return decode(api.Submitted, self._call("POST", path, record, wait=wait)[1])

    def get_slot(self, address: str) -> api.AccountSlot:
        """Who claims the next slot of an account."""
        return self._read(api.AccountSlot, f"/accounts/{_quote(address)}/slot")

    def post_unlock(self, request: bytes, wait: int = 0) -> api.Promises:
        """Ask for another attempt at a slot, and wait for a quorum's promises. Raises: RecordRefused."""
        path = add_query("/unlocks", wait=wait or None)
        return decode(api.Promises, self._call("POST", path, request, wait=wait)[1])

    def post_proposal(self, proposal: bytes, record: bytes, wait: int = 0) -> api.Submitted:
        """Propose a record for a slot's attempt, and wait for it to become final. Raises: RecordRefused."""
        from protocol.codec import encode

        path = add_query("/proposals", wait=wait or None)
        return decode(api.Submitted, self._call("POST", path, encode((proposal, record)), wait=wait)[1])

    def submit(self, record: bytes, wait_seconds: float) -> api.Submitted:
        """Hand in a record again and again until it is final or the time is over; the last answer.

        Raises: RecordRefused; Unreachable when the node never answered.
        """
        deadline = time.monotonic() + wait_seconds
        answer: api.Submitted | None = None
        pause = RETRY_PAUSES_SECONDS[0]
        while True:
            left = max(0.0, deadline - time.monotonic())
            started = time.monotonic()
            try:
                answer = self.submit_record(record, wait=int(min(left, api.WAIT_SECONDS_MAX)))
            except Unreachable:
                if left <= pause and answer is None:
                    raise
            if (answer is not None and answer.receipt is not None) or left <= pause:
                assert answer is not None
                return answer
            if time.monotonic() - started < 1:  # it did not wait: do not ask in a tight loop
                time.sleep(min(pause, left))
                pause = min(2 * pause, 5.0)

    # -- budgets and jobs ---------------------------------------------------------------------------------------------

    def get_suspensions(self) -> list[api.Suspension]:
        """Accounts that a member has stopped for a while."""
        return self._read(list[api.Suspension], "/suspensions")

    def get_programs(self) -> list[api.Program]:
        """All compute budgets."""
        return self._read(list[api.Program], "/programs")

    def post_budget_request(self, request: bytes) -> api.BudgetRequest:
        """Ask this node's institution for a budget."""
        return decode(api.BudgetRequest, self._call("POST", "/budget-requests", request)[1])

    def get_budget_request(self, request_id: str) -> api.BudgetRequest | None:
        """Whether the institution has answered; None when this node knows no such request."""
        return self._find(api.BudgetRequest, f"/budget-requests/{_quote(request_id)}")

    def get_offers(self) -> list[job_api.Offer]:
        """Machines on offer; the caller checks their signatures."""
        return self._read(list[job_api.Offer], "/offers")

    def get_donors(self) -> list[job_api.Donor]:
        """Every donor with its reliability, the most reliable first; the node's word."""
        return self._read(list[job_api.Donor], "/donors")

    def put_offer(self, offer: bytes) -> None:
        """Publish or renew a donor's offer."""
        self._call("PUT", "/offers", offer)

    def get_jobs(self) -> list[job_api.Job]:
        """The newest jobs."""
        return self._read(list[job_api.Job], "/jobs")

    def get_job(self, hold_id: str) -> job_api.Job | None:
        """A job, named by its hold."""
        return self._find(job_api.Job, f"/jobs/{_quote(hold_id)}")

    # -- letters and bundles ------------------------------------------------------------------------------------------

    def post_message(self, mailbox: bytes, content: bytes) -> int:
        """Put a letter into a mailbox; its sequence. Not repeated here: the letter could arrive twice."""
        path = f"/mailboxes/{mailbox.hex()}/messages"
        return decode(job_api.Posted, self._call("POST", path, content, may_repeat=False)[1]).sequence

    def get_messages(self, mailbox: bytes, after: int = 0, wait: int = 0) -> list[job_api.Message]:
        """Letters after a sequence; with `wait`, as soon as there is one, and perhaps none."""
        path = f"/mailboxes/{mailbox.hex()}/messages"
        return self._read(job_api.Messages, path, wait=wait or None, after=after).messages

    def put_blob(self, content: bytes) -> bytes:
        """Store a bundle; its name, the SHA-256 of the content."""
        from hashlib import sha256

        digest = sha256(content).digest()
        self._call("PUT", f"/blobs/{digest.hex()}", content, answer_seconds=BLOB_SECONDS_MAX)
        return digest

    def check_blob(self, digest: bytes) -> None:
        """Read a bundle through and drop it. Raises: UserError unless the node gives the content of this hash."""
        from hashlib import sha256

        hashed, path, seconds = sha256(), f"/blobs/{digest.hex()}", BLOB_SECONDS_MAX
        self._call(
            "GET", path, bytes_max=api.BLOB_BYTES_MAX, answer_seconds=seconds, may_repeat=False, take=hashed.update
        )
        if hashed.digest() != digest:
            raise UserError(f"{self._name} gives another content than the bundle {digest.hex()[:16]}...: try again")

    def get_blob(self, digest: bytes) -> bytes:
        """A bundle whose content has this hash. Raises: UserError when the node does not hold it."""
        from hashlib import sha256

        path = f"/blobs/{digest.hex()}"
        content = self._call("GET", path, bytes_max=api.BLOB_BYTES_MAX, answer_seconds=BLOB_SECONDS_MAX)[1]
        if sha256(content).digest() != digest:
            raise UserError(f"{self._name} gives another content than the bundle {digest.hex()[:16]}...: try again")
        return content

    # -- metering for an absent wallet --------------------------------------------------------------------------------

    def post_metering(self, order: job_api.MeteringOrder) -> job_api.Metered:
        """Leave a job's meter to the node. Repeating it changes nothing."""
        content = msgspec.json.encode(order)
        return decode(job_api.Metered, self._call("POST", "/metering", content, content_type="application/json")[1])

    def take_metering_back(self, ticket: bytes, turn: int) -> job_api.Metered | None:
        """Let the node stop, and say how far it came; None when it knows no such job. May be repeated."""
        path = add_query(f"/metering/{ticket.hex()}/return", turn=turn)
        status, content = self._call("POST", path, is_missing_allowed=True, wait=ANSWER_SECONDS_MAX)
        return None if status == 404 else decode(job_api.Metered, content)

    # -- the operator's socket ----------------------------------------------------------------------------------------

    def create_program(self, draft: api.ProgramDraft, dry_run: bool = False) -> api.Signed:
        """Declare a compute budget."""
        return self._order("/operator/programs", draft, dry_run)

    def list_budget_requests(self) -> list[api.BudgetRequest]:
        """People who ask for a budget."""
        return self._read(list[api.BudgetRequest], "/operator/budget-requests")

    def approve_budget_request(self, request_id: str, dry_run: bool = False) -> api.Signed:
        """Enrol the person who asked."""
        return self._order(f"/operator/budget-requests/{_quote(request_id)}/approve", None, dry_run)

    def grant(self, order: api.GrantOrder, dry_run: bool = False) -> api.Signed:
        """Pay allowances."""
        return self._order("/operator/grants", order, dry_run)

    def sponsor(self, order: api.SponsorOrder, dry_run: bool = False) -> api.Signed:
        """Vouch for a donor."""
        return self._order("/operator/sponsors", order, dry_run)

    def pick_checkpoint(self) -> None:
        """Ask the members to certify the state now."""
        self._call("POST", "/operator/checkpoint", may_repeat=False)

    def fetch_archive(self) -> api.FetchedArchive:
        """Let the node fetch old batches back from other members."""
        content = self._call("POST", "/operator/archive", may_repeat=False, answer_seconds=ARCHIVE_SECONDS_MAX)[1]
        return decode(api.FetchedArchive, content)

    def collect_vote_cards(self) -> list[api.VoteCard]:
        """The vote keys for the next charter version, of this member and all that answer it."""
        return self._read(list[api.VoteCard], "/operator/vote-cards")

    def propose_amendment(self, order: api.AmendmentOrder, dry_run: bool = False) -> api.Signed:
        """Sign an amendment of the charter, and approve it."""
        return self._order("/operator/amendments", order, dry_run)

    def approve_amendment(self, record_id: str, dry_run: bool = False) -> api.Signed:
        """Let the member vote for an amendment."""
        return self._order(f"/operator/amendments/{_quote(record_id)}/approve", None, dry_run)

    def unlock_amendment(self, record_id: str, dry_run: bool = False) -> api.Signed:
        """Make another attempt at an amendment, when the votes are split."""
        return self._order(f"/operator/amendments/{_quote(record_id)}/unlock", None, dry_run)

    def suspend(self, order: api.SuspendOrder, dry_run: bool = False) -> api.Signed:
        """Stop an account for a while."""
        return self._order("/operator/suspensions", order, dry_run)

    def reinstate(self, order: api.ReinstateOrder, dry_run: bool = False) -> api.Signed:
        """End a suspension before its time."""
        return self._order("/operator/reinstatements", order, dry_run)

    def complete_leave(self, order: api.LeaveOrder, dry_run: bool = False) -> api.Signed:
        """Let a person go who signed for it."""
        return self._order("/operator/leaves", order, dry_run)

    def _order(self, path: str, order: msgspec.Struct | None, dry_run: bool) -> api.Signed:
        # An act of the institution waits for its records to become final, and is not repeated unasked.
        content = msgspec.json.encode(order) if order is not None else b""
        path = add_query(path, dry_run="true" if dry_run else None)
        media = "application/json"
        answer = self._call("POST", path, content, wait=ANSWER_SECONDS_MAX, may_repeat=False, content_type=media)
        return decode(api.Signed, answer[1])


def _quote(text: str) -> str:
    return quote(text.strip(), safe="")
