"""Valid bytes of everything that is read from others, made from labels: for golden vectors and for fuzzing."""

from __future__ import annotations

from collections.abc import Sequence

from protocol import conversation, messages
from protocol.batches import Batch
from protocol.job_evidence import Rerun
from protocol.metering import JobState, Rate, Tick, compute_charge
from protocol.quotes import JobReceipt, Offer, OfferedGpu, Quote, QuoteRequest, RuntimeName
from protocol.replica import Replica
from protocol.statements import (
    Adopt,
    Checkpoint,
    Commit,
    CommitBatch,
    Promise,
    Proof,
    Proposal,
    SlotProposal,
    Statement,
    Unlock,
    UnlockRequest,
    Vote,
    VoteBatch,
    encode_signed,
    encode_statement,
)
from protocol.vote_cards import VoteCard
from tests.disputed_jobs import make_shared_job
from tests.local_members import Gathering, build_gathered_receipt, make_prefix
from tests.strategies import (
    make_economy,
    make_federation,
    make_id,
    make_key,
    make_public_key,
    make_records_of_every_kind,
)
from tests.wrongdoing import make_evidence

FEDERATION = make_federation()
SENDER_KEY = make_public_key("sender")
_SENDER = make_key("sender")
_SCOPE = b"\x01" + make_id("account")


def make_unlock_request() -> bytes:
    """A slot owner's signed wish for a new attempt."""
    unlock = UnlockRequest(_SCOPE, 3, 1, SENDER_KEY, bytes(64))
    return encode_signed(unlock._replace(signature=_SENDER.sign(unlock.compute_id(FEDERATION.id))))


def make_slot_proposal() -> bytes:
    """A slot owner's signed proposal."""
    promises = tuple(sorted((make_id("some batch"), make_id("other batch"))))
    proposal = SlotProposal(_SCOPE, 3, 1, make_id("record"), promises, SENDER_KEY, bytes(64))
    return encode_signed(proposal._replace(signature=_SENDER.sign(proposal.compute_id(FEDERATION.id))))


def _gather_prefix() -> Gathering:
    gathering = Gathering(FEDERATION)
    for batch in make_prefix(FEDERATION):
        gathering.receive(batch)
    return gathering


def make_receipt() -> bytes:
    """A receipt of finality for an economy's grant."""
    return build_gathered_receipt(_gather_prefix(), make_economy(FEDERATION).grant)


def make_statements() -> list[Statement]:
    """Statements of each kind."""
    some, other = make_id("some batch"), make_id("other batch")
    return [
        VoteBatch(some, 0),
        CommitBatch(b"", 0b1000_0000_0101),
        Vote(some, 3, 0, b"", 0),
        Vote(some, 3, 2, other, 1),
        Commit(some, 1023, 1),
        Promise(some, 0, b"", 0, 0),
        Promise(some, 0, make_id("record"), 1, 2),
        Adopt(1, make_id("amendment")),
        Checkpoint(b"", make_id("root")),
        Proof(make_receipt()),
        Unlock(make_unlock_request()),
        Proposal(make_slot_proposal()),
    ]


def make_forked_batches() -> tuple[Batch, Batch]:
    """Two batches for one place of a log."""
    return (
        FEDERATION.batch(3, statements=make_statements(), time_ms=1),
        FEDERATION.batch(3, records=make_records_of_every_kind(FEDERATION), time_ms=2),
    )


def make_budget_request() -> bytes:
    """A person's request to member 1."""
    program = make_economy(FEDERATION).program.id
    return FEDERATION.budget_request(1, FEDERATION.person("applicant"), program).encode()


# -- jobs -------------------------------------------------------------------------------------------------------------

_RATE = Rate(500, 2, 4, 1)


def _make_offer() -> bytes:
    offer = Offer(
        SENDER_KEY,
        make_id("seal key"),
        make_id("sponsor"),
        "https://node.example",
        "a machine",
        4,
        8 * 10**9,
        10**10,
        0,
        (OfferedGpu("gpu", 80), OfferedGpu("gpu", 80)),
        500,
        (RuntimeName("python", make_id("python")), RuntimeName("torch", make_id("torch"))),
        ("cpu", "gpu"),
        ("data.example:443",),
        3600,
        2_000_000,
        bytes(64),
    )
    return offer.sign(FEDERATION.id, _SENDER).encode()


def _make_quote_request() -> bytes:
    return (
        QuoteRequest(
            make_id("account"),
            SENDER_KEY,
            make_id("seal key"),
            make_id("result key"),
            2,
            4 * 10**9,
            10**9,
            1,
            1,
            600,
            make_id("torch"),
            "gpu",
            make_id("to donor"),
            make_id("to wallet"),
            bytes(64),
        )
        .sign(FEDERATION.id, _SENDER)
        .encode()
    )


def _make_quote() -> bytes:
    amount = compute_charge(600 * 1000, _RATE)
    quote = Quote(
        SENDER_KEY, make_id("request"), make_id("sponsor"), _RATE, 600, 60, amount, 600, 1, 0, 2_000_000, bytes(64)
    )
    return quote.sign(FEDERATION.id, _SENDER).encode()


def _make_job_receipts() -> list[bytes]:
    receipt = JobReceipt(
        make_id("hold"), make_id("quote"), JobState.DONE, 0, 1000, 5, 10**6, 301, make_id("out"), 7, b"", bytes(64), b""
    )
    by_donor = receipt.sign_as_donor(FEDERATION.id, _SENDER)
    return [by_donor.encode(), by_donor.sign_as_payer(FEDERATION.id, _SENDER).encode()]


def _make_tick() -> bytes:
    return Tick(make_id("hold"), 3, 90_000, 12, make_id("tick"), b"", bytes(64)).encode()


def _make_messages() -> list[conversation.Message]:
    receipt, signature = make_receipt(), bytes(64)
    return [
        conversation.Start(receipt, make_id("inputs"), signature),
        conversation.VoucherGiven(3, 12, signature),
        conversation.ReceiptAgreed(signature),
        conversation.Cancel("no longer needed"),
        conversation.Quoted(_make_quote()),
        conversation.Refused("busy ☕"),
        conversation.Accepted(make_id("hold")),
        conversation.Started(make_id("hold")),
        conversation.Standing("SUSPENDED", "the owner uses the machine"),
        conversation.LogChunk(17, b"epoch 1\n"),
        conversation.Ticked(_make_tick()),
        conversation.Result(_make_job_receipts()[0], "done"),
        conversation.Settled(receipt),
    ]


def _make_envelopes() -> list[bytes]:
    mailbox = bytes(32)
    return [
        conversation.encode_envelope(FEDERATION.id, _SENDER, mailbox, number, message)
        for number, message in enumerate(_make_messages())
    ]


def make_job_evidence() -> bytes:
    """What the payer of a job has when it disputes it."""
    return _make_job_evidence()[0]


def _make_job_evidence() -> list[bytes]:
    job = make_shared_job()
    ticks = job.make_ticks(10, 20, checkpoints=[1])
    evidence = job.make_evidence(ticks, job.make_receipt(ticks), result_key=make_id("result key"))
    rerun = Rerun(evidence.hold_receipt, evidence.quote, evidence.job_receipt, b"")
    return [evidence.encode(), evidence._replace(reruns=(rerun,), request=b"", result_key=b"").encode()]


# -- synchronising ----------------------------------------------------------------------------------------------------


def _make_vote_card() -> bytes:
    card = VoteCard(1, 1, SENDER_KEY, "/dns/node.example/tcp/4001", bytes(64))
    return card.sign(FEDERATION.id, FEDERATION.member_keys[1]).encode()


def _make_sync_requests(replica: Replica) -> list[bytes]:
    heads = messages.get_heads(replica)
    locators = [messages.LogLocator(place.member, place.version, ((place.index, place.batch),)) for place in heads]
    return [
        messages.encode_probe(messages.compute_frontier_digest(replica)),
        messages.encode_pull([*locators, messages.LogLocator(4, 0, ())]),
    ]


def make_seeds() -> dict[str, Sequence[bytes]]:
    """Valid inputs by the name of their decoder."""
    left, right = make_forked_batches()
    prefix = _gather_prefix()
    replica = prefix.replica
    batches = [left, right, *prefix.batches.values()]
    records = make_records_of_every_kind(FEDERATION)
    encoded = tuple(batch.encoded for batch in batches)
    return {
        "record": [record.encoded for record in records],
        "statement": [encode_statement(statement) for statement in make_statements()],
        "batch": encoded,
        "header": [batch.header_bytes for batch in batches],
        "charter": [FEDERATION.charter.encoded],
        "founded_charter": [FEDERATION.found().encode()],
        "receipt": [build_gathered_receipt(prefix, record) for record in records[:5]],
        "budget_request": [make_budget_request()],
        "unlock_request": [make_unlock_request()],
        "slot_proposal": [make_slot_proposal()],
        "evidence": [proof.encoded for proof in make_evidence().values()],
        "offer": [_make_offer()],
        "quote_request": [_make_quote_request()],
        "quote": [_make_quote()],
        "job_receipt": _make_job_receipts(),
        "tick": [_make_tick()],
        "job_evidence": _make_job_evidence(),
        "message": [conversation.encode_message(message) for message in _make_messages()],
        "envelope": _make_envelopes(),
        "script": [conversation.Script("pip list", "python run.py", (("A", "1"), ("B", ""))).encode()],
        "sync_request": _make_sync_requests(replica),
        "frontier": [messages.encode_frontier(()), messages.encode_frontier(messages.get_heads(replica))],
        "vote_card": [_make_vote_card()],
        "wanted": [messages.encode_wanted([batch.id for batch in batches])],
        "fact": replica.compute_facts()[::7],
        "piece": [messages.encode_piece(messages.Piece(1, encoded)), messages.encode_piece(messages.Piece(0, ()))],
    }
