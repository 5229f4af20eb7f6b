"""What a node says over HTTP: the paths and the JSON shapes, one place for server and client.

The shapes of donors, offers and jobs stand in `node/job_api.py`.

Ids are bech32m text (`node/addresses.py`), bytes are base64, amounts are integer millicredits. Records, offers and
messages travel as their canonical bytes (`application/octet-stream`), because what is signed are bytes. Failures are
problem details (RFC 9457). A shape only grows: fields are added, never changed in meaning.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from node import job_api

PREFIX = "/v1"
OCTETS = "application/octet-stream"

WAIT_SECONDS_MAX = 30
"""Longest long poll. Proxies cut idle requests at 60 s."""

HISTORY_LIMIT_MAX = 200
MESSAGE_BYTES_MAX = 64 * 1024
BLOB_BYTES_MAX = 64 * 1024 * 1024

RecordState = Literal["waiting", "introduced", "final", "applied"]
"""waiting: taken in, not yet in a batch; introduced: in a batch, no quorum yet; final; applied: final, and counted in
the balances (the usual end)."""


class Health(msgspec.Struct):
    status: Literal["ok"]


class Member(msgspec.Struct):
    number: int
    name: str
    address: str
    """The member's own account."""
    weight: int
    peer_id: str
    is_forked: bool


class Amendment(msgspec.Struct):
    """A change of the charter that is final."""

    version: int
    record: str
    receipt: bytes
    """Of its finality under the version before; it holds the charter. All of them together prove the newest version
    to whoever pins the federation."""
    in_force_since: int | None
    """Unix time at which a quorum had adopted it, as this node saw it; None before."""


class Proposal(msgspec.Struct):
    """A change of the charter that waits for members to approve it."""

    record: str
    version: int
    encoded: bytes
    """The charter that it would make, canonical bytes."""
    proposed_by: str
    voted_by: list[str]
    weight: int
    """Of those that voted; `quorum` of the charter is needed."""
    is_approved_here: bool


class Charter(msgspec.Struct):
    federation: str
    name: str
    founded: bytes
    """The founding document, canonical bytes: what a wallet pins and verifies."""
    epoch: int
    epoch_seconds: int
    quorum: int
    members: list[Member]
    version: int = 0
    """The one in force; all but `founded` and `amendments` is as it says."""
    encoded: bytes = b""
    """The charter in force, canonical bytes."""
    amendments: list[Amendment] = []
    proposals: list[Proposal] = []
    addresses: dict[str, str] = {}
    """Member -> network address of its node, as this one knows it. Not signed."""


class Checkpoint(msgspec.Struct):
    """The last state that a quorum certified and whose facts this node keeps."""

    batch: str
    """Id of the batch in whose past it lies, in hex."""
    root: str
    """Of the state, in hex."""
    time_ms: int
    """By the clocks of those that certified it, Unix milliseconds."""
    proof: bytes
    """Statements of a quorum: checked against the charter."""
    snapshot_bytes: int
    """Of `/checkpoint/facts`."""


class FetchedArchive(msgspec.Struct):
    """Old batches that were fetched back from other members."""

    batches: int
    missing: int
    """Those that no connected member has."""


class AccountProof(msgspec.Struct):
    """What an account held at a checkpoint."""

    checkpoint: bytes
    """The proof of the checkpoint."""
    facts: bytes
    """Proof that the facts about its balance and its last record stand under the root; empty when there are none."""


class Peer(msgspec.Struct):
    name: str
    peer_id: str
    is_connected: bool


class Status(msgspec.Struct):
    version: str
    federation: str
    member: int
    name: str
    epoch: int
    batches: int
    records_final: int
    records_waiting: int
    """Final records that wait for a predecessor or for funds."""
    state_root: str
    frontier: str
    """Digest of the heads of all logs: equal on two nodes exactly when they hold the same batches."""
    peers: list[Peer]
    forked_members: list[int]
    bytes_received: dict[str, int]
    """Bytes by protocol since the start."""
    frozen_count: int = 0
    """Scopes in which two records became final in one slot: more was faulty than the quorum tolerates."""
    evidence: list[str] = []
    """One line for each proof of wrongdoing that this node holds: who did what."""
    charter_version: int = 0
    """The one in force."""
    notice: str = ""
    """Why this node signs nothing at the moment, in words."""


class Evidence(msgspec.Struct):
    """A proof that somebody contradicted itself. Whoever reads it verifies `encoded` and believes nothing else."""

    id: str
    """Hex name of what is proven; two proofs of one thing share it."""
    kind: str
    """`fork`, `votes`, `commits`, `hidden_commit`, `finals` or `records`."""
    members: list[int]
    accounts: list[str]
    text: str
    seen_seconds: int
    """Unix time at which this node, since its last start, first listed it."""
    encoded: bytes


class Lot(msgspec.Struct):
    program: str | None
    program_name: str
    expiry_epoch: int
    """0 = never."""
    millicredits: int


class Enrolment(msgspec.Struct):
    record: str
    member: int
    until_epoch: int = 0
    """The last epoch in which it counts, once the person has left or moved; else 0."""
    member_name: str = ""


class Sponsorship(msgspec.Struct):
    record: str
    member: int
    until_epoch: int


class Suspension(msgspec.Struct):
    """A member has stopped an account for a while."""

    account: str
    member: int
    member_name: str
    until_epoch: int
    """The last epoch of it."""
    reason: int
    """A number that means what the suspending member says that it means."""
    appeal: str
    """To whom the owner can turn."""
    evidence: str | None
    """SHA-256 of what the member decided on, in hex."""
    record: str | None
    """None when this node has the state without the record: then reason, appeal and evidence are not known here."""
    until_seconds: int = 0
    """Unix seconds at which that epoch ends."""


class Account(msgspec.Struct):
    address: str
    epoch: int
    next_sequence: int
    head: str | None
    """The record in the slot before `next_sequence`: the `prev` of the account's next record."""
    millicredits: int
    lots: list[Lot]
    enrolments: list[Enrolment]
    sponsorships: list[Sponsorship]
    key: bytes | None = None
    """The key in force; none while it is the first one, whose hash is the account."""
    suspensions: list[Suspension] = []
    """Those that last. Meanwhile the account can't pay, hold or be granted credits."""
    is_frozen: bool = False
    """Two records became final in one of its slots: nobody writes there any more."""
    overdraft_millicredits: int = 0
    """What they took and the account lacked."""
    pending: list[str] = []
    """Records that claim a slot of this account from `next_sequence` on and are not final, as the node knows."""
    reliability: job_api.Reliability | None = None
    """Of a donor; None for an account that is none."""


class AccountSlot(msgspec.Struct):
    """The next slot of an account. A wallet believes what its own key signed, whoever hands it over."""

    sequence: int
    attempt: int
    """The highest attempt that the owner asked for; 0 if none."""
    request: bytes | None
    """The owner's unlock request for that attempt, canonical bytes: its proof."""
    records: list[bytes]
    """The records that claim the slot, canonical bytes."""
    is_contested: bool
    """Several records claim it, or its owner asked to unlock it."""


class Record(msgspec.Struct):
    id: str
    kind: str
    epoch: int
    account: str
    """The writing account, the hold or the person's tag, by the scope's kind."""
    sequence: int
    state: RecordState
    body: dict[str, object]
    """For reading; what counts are the canonical bytes."""
    encoded: bytes
    receipt: bytes | None
    """Receipt of finality, once final."""


class RecordPage(msgspec.Struct):
    records: list[Record]
    """Newest first, without receipts."""
    before: int | None
    """Pass as `before` for the next page."""


class Submitted(msgspec.Struct):
    id: str
    state: RecordState
    receipt: bytes | None


class SlotPromise(msgspec.Struct):
    """A member's promise, and the certificate that it reports."""

    batch: bytes
    """Id of the batch that carries it: what a proposal names."""
    member: int
    record: str | None
    version: int
    attempt: int
    """The round of the reported certificate; 0 and 0 without one."""


class Promises(msgspec.Struct):
    """The answer to an unlock request."""

    version: int
    """The charter version of the asked attempt."""
    attempt: int
    is_decided: bool
    """A record is final in the slot: there is nothing left to unlock."""
    has_quorum: bool
    promises: list[SlotPromise]
    records: list[bytes]
    """The records that claim the slot, canonical bytes."""


class Program(msgspec.Struct):
    id: str
    member: int
    member_name: str
    name: str
    purpose: str
    allowance: int
    """Millicredits per person and epoch."""
    expiry_epochs: int
    is_transferable: bool
    job_classes: list[str]
    granted: int
    """Millicredits granted so far."""


class BudgetRequest(msgspec.Struct):
    id: str
    program: str
    account: str
    text: str
    state: Literal["open", "approved"]


class ProgramDraft(msgspec.Struct):
    name: str
    purpose: str
    allowance: int
    expiry_epochs: int
    is_transferable: bool
    job_classes: list[str]


class GrantOrder(msgspec.Struct):
    program: str
    accounts: list[str] | None = None
    """None: everybody whose request was approved."""
    amount: int | None = None
    """Millicredits a person; None: what is left of the allowance."""


class SponsorOrder(msgspec.Struct):
    donor: str
    epochs: int
    """How many epochs from now on."""


class VoteCard(msgspec.Struct):
    """A member's vote key for the next charter version."""

    member: int
    vote_key: bytes
    address: str


class AmendmentOrder(msgspec.Struct):
    charter: bytes
    """Canonical bytes of the next version."""


class SuspendOrder(msgspec.Struct):
    account: str
    reason: int
    days: int
    """It lasts to the end of the epoch in which so many days from now have passed."""
    evidence: bytes
    """SHA-256 of what was decided on, or empty."""
    appeal: str


class ReinstateOrder(msgspec.Struct):
    account: str


class LeaveOrder(msgspec.Struct):
    record: bytes
    """The leave record, canonical bytes, signed by the person; in the member's place stand zero bytes."""


class Signed(msgspec.Struct):
    """Answer of a signing verb: the records that were made final by it, or would be (dry run)."""

    records: list[Submitted]
    text: str


class Problem(msgspec.Struct):
    type: str
    title: str
    status: int
    detail: str
    reason: str | None = None
    """Name of a `protocol.errors.Reason` when a rule forbids the record."""
