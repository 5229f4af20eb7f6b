"""Several donors that play a job to its end on a ledger that is real: each does what its test wants, job after job."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import job_api
from node.bundles import compute_digest, list_bundle, pack_bundle
from node.sealing import open_sealed, seal, seal_public_key
from protocol.conversation import (
    Accepted,
    Cancel,
    LogChunk,
    Quoted,
    ReceiptAgreed,
    Refused,
    Result,
    Settled,
    Start,
    Started,
    Ticked,
    VoucherGiven,
    compute_inbox_name,
    compute_seal_context,
    decode_envelope,
    encode_envelope,
)
from protocol.identifiers import compute_account_id
from protocol.metering import REFUND_TABLE_VERSION, JobState, compute_amount_due, compute_charge, sign_tick
from protocol.quotes import JobReceipt, Offer, Quote, RuntimeName, compute_rate, decode_quote_request
from protocol.receipts import verify_receipt
from protocol.records import NONE, Kind, RecordDraft, Settle, Sponsor, hold_scope, sign_record

TICK_MS = 2_000

Act = str | tuple[JobState, dict[str, bytes] | Callable[..., dict[str, bytes]], dict[str, bytes]]


def read_files(bundle):
    """Path -> content of a bundle's files."""
    return {
        entry.path: bundle[entry.offset : entry.offset + entry.size]
        for entry in list_bundle(bundle)
        if not entry.is_directory
    }


class Player:
    """One donor. `acts` is what it does with each job it gets, in order; the last one is done again and again.

    An act is "refuse", "wait" (until the wallet cancels) or (end state, {results}, {checkpoint}); results may also be a
    function of the job's input files. A greedy donor settles its highest voucher, whatever is due.
    """

    def __init__(self, stage, number, machine, *acts, is_greedy=False, **changes):
        self.stage = stage
        self.key = Ed25519PrivateKey.from_private_bytes(bytes([100 + number]) * 32)
        self.public_key = self.key.public_key().public_bytes_raw()
        self.account = compute_account_id(stage.federation_id, self.public_key)
        self.seal_seed = bytes([number]) * 32
        self.acts = list(acts)
        self.is_greedy = is_greedy
        self.inputs = []
        with stage.federation.lock:
            body = Sponsor(1, self.account, stage.federation.epochs[-1])
            self.sponsor = stage.federation.sign(Kind.SPONSOR, stage.federation.member_account, body).id
        self.offer = Offer(
            donor_key=self.public_key,
            seal_key=seal_public_key(self.seal_seed),
            sponsor=self.sponsor,
            node_url=f"http://node-of-{machine}",
            machine=machine,
            cores=4,
            memory_bytes=8 * 10**9,
            disk_bytes=10**10,
            is_disk_in_memory=0,
            gpus=(),
            weight=1000,
            runtimes=(RuntimeName("python-ml", b"d" * 32),),
            job_classes=("batch",),
            hosts=(),
            wall_seconds_max=3600,
            valid_until=stage.wallet.now() + 600,
            signature=b"",
        )
        self.offer = self.offer._replace(**changes).sign(stage.federation_id, self.key)

    def take_act(self):
        return self.acts.pop(0) if len(self.acts) > 1 else self.acts[0]


class Conversation:
    """One job at one donor."""

    def __init__(self, stage, player, content):
        self.stage, self.player = stage, player
        context = compute_seal_context(b"inbox", compute_inbox_name(player.account))
        self.request = decode_quote_request(stage.wallet.charter, open_sealed(player.seal_seed, content, context))
        self.said, self.heard, self.ticks = 0, [], []
        self.vouchers: list[tuple[int, int, bytes]] = []
        self.receipt: JobReceipt | None = None
        self.hold = NONE
        self.act = player.take_act()
        self.quote = self.make_quote()
        self.say(Refused("busy") if self.act == "refuse" else Quoted(self.quote.encode()))

    def make_quote(self):
        stage, player = self.stage, self.player
        rate = compute_rate(player.offer, self.request)
        seconds = self.request.wall_seconds
        quote = Quote(
            donor_key=player.public_key,
            request=self.request.compute_id(stage.federation_id),
            sponsor=player.sponsor,
            rate=rate,
            wall_seconds=seconds,
            tick_seconds=30,
            amount_max=compute_charge(seconds * 1000, rate),
            grace_seconds=3600,
            refund_table=REFUND_TABLE_VERSION,
            charter_version=0,
            valid_until=stage.wallet.now() + 300,
            signature=b"",
        )
        return quote.sign(stage.federation_id, player.key)

    def say(self, message):
        mailbox = self.request.mailbox_to_wallet
        envelope = encode_envelope(self.stage.federation_id, self.player.key, mailbox, self.said, message)
        self.said += 1
        self.stage.post(mailbox, seal(self.request.seal_key, envelope, compute_seal_context(b"message", mailbox)))

    def hear(self, content):
        mailbox = self.request.mailbox_to_donor
        envelope = open_sealed(self.player.seal_seed, content, compute_seal_context(b"message", mailbox))
        message = decode_envelope(self.stage.federation_id, self.request.meter_key, mailbox, envelope)[1]
        self.heard.append(type(message))
        match message:
            case Start() if not self.hold:
                self.begin(message)
            case VoucherGiven():
                self.vouchers.append((message.sequence, message.amount, message.signature))
                self.end()
            case Cancel() if self.receipt is None:
                self.act = (JobState.CANCELLED, {}, {})
                self.end()
            case ReceiptAgreed():
                self.settle()

    def begin(self, start):
        self.hold = verify_receipt({0: self.stage.wallet.charter}, start.hold_receipt).record.id
        self.vouchers.append((0, 0, start.voucher_signature))
        context = compute_seal_context(b"inputs", self.hold)
        files = read_files(open_sealed(self.player.seal_seed, self.stage.blobs[start.inputs], context))
        self.player.inputs.append(files)
        self.say(Accepted(self.hold))
        self.say(Started(self.hold))
        self.say(LogChunk(0, b"working\n::progress 50%\n"))
        self.tick(self.act[2] if self.act != "wait" else {})

    def tick(self, checkpoint):
        digest = self.put(checkpoint, b"checkpoint") if checkpoint else NONE
        before = self.ticks[-1] if self.ticks else None
        elapsed_ms = TICK_MS * (len(self.ticks) + 1)
        stage, rate = self.stage, self.quote.rate
        self.ticks.append(sign_tick(stage.federation_id, self.player.key, self.hold, rate, before, elapsed_ms, digest))
        self.say(Ticked(self.ticks[-1].encode()))

    def put(self, files, what):
        folder = self.stage.folder / f"{len(self.stage.blobs)}"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        sealed = seal(self.request.result_key, pack_bundle(folder), compute_seal_context(what, self.hold))
        self.stage.blobs[compute_digest(sealed)] = sealed
        return compute_digest(sealed)

    def end(self):
        """After the first voucher one more tick is given, without a checkpoint; after the second the job ends."""
        if self.act == "wait" or self.receipt is not None:
            return
        if len(self.ticks) < 2 and self.act[0] is not JobState.CANCELLED:
            self.tick({})
            return
        state, results, _ = self.act
        results = results(self.player.inputs[-1]) if callable(results) else results
        outputs = self.put(results, b"outputs") if results else NONE
        saved = [tick for tick in self.ticks if tick.checkpoint]
        due = compute_amount_due(REFUND_TABLE_VERSION, state, self.ticks[-1], saved[-1] if saved else None)
        quote = self.quote.compute_id(self.stage.federation_id)
        tick = self.ticks[-1].compute_id(self.stage.federation_id)
        status = 0 if state is JobState.DONE else 256
        unsigned = JobReceipt(
            self.hold, quote, state, status, self.ticks[-1].elapsed_ms, 0, 0, 0, outputs, due, tick, b"", b""
        )
        self.receipt = unsigned.sign_as_donor(self.stage.federation_id, self.player.key)
        self.say(Result(self.receipt.encode(), ""))

    def settle(self):
        assert self.receipt is not None, "only a receipt is agreed to"
        amount_max = self.quote.amount_max if self.player.is_greedy else self.receipt.amount
        sequence, amount, signature = max(voucher for voucher in self.vouchers if voucher[1] <= amount_max)
        body = Settle(sequence, amount, signature, NONE, 0, self.receipt.compute_id(self.stage.federation_id))
        draft = RecordDraft(Kind.SETTLE, 1, hold_scope(self.hold), 0, NONE, body, (self.player.public_key,))
        record = sign_record(self.stage.federation_id, draft, [self.player.key])
        with self.stage.federation.lock:
            self.stage.federation.submit(record.encoded)
            receipt = self.stage.federation.receipt(record.id)
        self.say(Settled(receipt))


class Stage:
    """Stands between the wallet and its node, like a node at which all the donors listen."""

    def __init__(self, wallet, client, federation, folder):
        self.wallet, self.client, self.federation, self.folder = wallet, client, federation, folder
        self.federation_id = wallet.charter.federation
        self.players, self.conversations = [], []
        self.mailboxes, self.blobs = {}, {}
        self.sequence = 0

    def __getattr__(self, name):
        return getattr(self.client, name)

    def add(self, machine, *acts, **changes):
        self.players.append(Player(self, len(self.players) + 1, machine, *acts, **changes))
        return self.players[-1]

    def post(self, mailbox, content):
        self.sequence += 1
        self.mailboxes.setdefault(mailbox, []).append(job_api.Message(self.sequence, content))

    def get_offers(self):
        return [job_api.Offer("", player.offer.encode(), player.offer.valid_until) for player in self.players]

    def post_message(self, mailbox, content):
        for player in self.players:
            if mailbox == compute_inbox_name(player.account):
                self.conversations.append(Conversation(self, player, content))
        for conversation in self.conversations:
            if mailbox == conversation.request.mailbox_to_donor:
                conversation.hear(content)
        return 1

    def get_messages(self, mailbox, after=0, wait=0):
        found = [message for message in self.mailboxes.get(mailbox, []) if message.sequence > after]
        assert found or not wait, "the wallet would wait for ever"
        return found

    def put_blob(self, content):
        self.blobs[sha256(content).digest()] = content

    def get_blob(self, digest):
        return self.blobs[digest]
