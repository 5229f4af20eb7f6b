"""A donor that says whatever a test wants, honest or not, between a wallet and its node."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import job_api
from node.sealing import open_sealed, seal, seal_public_key
from protocol.conversation import (
    Quoted,
    Refused,
    Result,
    compute_inbox_name,
    compute_seal_context,
    decode_envelope,
    encode_envelope,
)
from protocol.identifiers import compute_account_id
from protocol.metering import REFUND_TABLE_VERSION, JobState, compute_charge, sign_tick
from protocol.quotes import JobReceipt, Offer, Quote, RuntimeName, compute_rate, decode_quote_request

DONOR = Ed25519PrivateKey.from_private_bytes(bytes([21]) * 32)
DONOR_PUBLIC = DONOR.public_key().public_bytes_raw()
SEAL_SEED = bytes([22]) * 32
FUNDS = 10**6


class ScriptedDonor:
    """Stands between the wallet and its node: the node's own answers, and mailboxes in which it plays the donor."""

    def __init__(self, wallet, client, sponsor):
        self.wallet, self.client, self.sponsor = wallet, client, sponsor
        self.charter = wallet.charter
        self.federation = wallet.charter.federation
        self.account = compute_account_id(self.federation, DONOR_PUBLIC)
        self.offers = [self.make_offer()]
        self.change_quote = lambda quote: quote
        self.refusal = None
        self.is_silent = False
        self.mailboxes, self.blobs, self.heard = {}, {}, []
        self.sequence = self.said = 0
        self.request: Any = None
        self.quote: Any = None

    def __getattr__(self, name):
        return getattr(self.client, name)

    def make_offer(self, **changes):
        offer = Offer(
            donor_key=DONOR_PUBLIC,
            seal_key=seal_public_key(SEAL_SEED),
            sponsor=self.sponsor,
            node_url="http://donors-node",
            machine="bench",
            cores=4,
            memory_bytes=8 * 10**9,
            disk_bytes=10**10,
            is_disk_in_memory=0,
            gpus=(),
            weight=1000,
            runtimes=(RuntimeName("python-ml", b"d" * 32),),
            job_classes=("batch", "training"),
            hosts=(),
            wall_seconds_max=3600,
            valid_until=self.wallet.now() + 600,
            signature=b"",
        )
        return offer._replace(**changes).sign(self.federation, DONOR)

    # what the client does

    def get_offers(self):
        return [job_api.Offer("", offer.encode(), offer.valid_until) for offer in self.offers]

    def post_message(self, mailbox, content):
        if mailbox == compute_inbox_name(self.account):
            self.take_request(content)
        else:
            envelope = open_sealed(SEAL_SEED, content, compute_seal_context(b"message", mailbox))
            self.heard.append(decode_envelope(self.federation, self.request.meter_key, mailbox, envelope)[1])
        return 1

    def get_messages(self, mailbox, after=0, wait=0):
        found = [message for message in self.mailboxes.get(mailbox, []) if message.sequence > after]
        assert found or not wait, "the wallet would wait for ever"
        return found

    def put_blob(self, content):
        self.blobs[sha256(content).digest()] = content

    def get_blob(self, digest):
        return self.blobs[digest]

    # what the donor does

    def post(self, content):
        self.sequence += 1
        self.mailboxes.setdefault(self.request.mailbox_to_wallet, []).append(job_api.Message(self.sequence, content))

    def say(self, message, key=DONOR):
        mailbox = self.request.mailbox_to_wallet
        envelope = encode_envelope(self.federation, key, mailbox, self.said, message)
        self.said += 1
        self.post(seal(self.request.seal_key, envelope, compute_seal_context(b"message", mailbox)))

    def take_request(self, content):
        inbox = compute_inbox_name(self.account)
        encoded = open_sealed(SEAL_SEED, content, compute_seal_context(b"inbox", inbox))
        self.request = decode_quote_request(self.charter, encoded)
        if self.refusal:
            self.say(Refused(self.refusal))
        elif not self.is_silent:
            rate = compute_rate(self.offers[0], self.request)
            seconds = self.request.wall_seconds
            quote = Quote(
                donor_key=DONOR_PUBLIC,
                request=self.request.compute_id(self.federation),
                sponsor=self.sponsor,
                rate=rate,
                wall_seconds=seconds,
                tick_seconds=30,
                amount_max=compute_charge(seconds * 1000, rate),
                grace_seconds=3600,
                refund_table=REFUND_TABLE_VERSION,
                charter_version=0,
                valid_until=self.wallet.now() + 300,
                signature=b"",
            )
            self.quote = self.change_quote(quote).sign(self.federation, DONOR)
            self.say(Quoted(self.quote.encode()))

    def make_tick(self, hold, elapsed_ms, before=None):
        return sign_tick(self.federation, DONOR, hold, self.quote.rate, before, elapsed_ms)

    def make_result(self, hold, tick, state=JobState.DONE, outputs=b"", amount=None):
        receipt = JobReceipt(
            hold,
            self.quote.compute_id(self.federation),
            state,
            0,
            tick.elapsed_ms,
            0,
            0,
            0,
            outputs,
            tick.amount if amount is None else amount,
            tick.compute_id(self.federation),
            b"",
            b"",
        )
        return Result(receipt.sign_as_donor(self.federation, DONOR).encode(), "")

    def get_heard(self, kind):
        return [message for message in self.heard if isinstance(message, kind)]
