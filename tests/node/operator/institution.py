"""A federation of one, running in this process, and people who ask it for budgets."""

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import api
from node.addresses import Kind, decode_address, encode_address
from node.keystore import Key
from node.member import LedgerMember
from node.operator.actions import OperatorActions
from node.operator.conduct import ConductActions
from node.operator.founding import DraftOptions, FounderCard, compose_draft, join_signatures, open_draft, sign_draft
from node.operator.outbox import Outbox
from node.storage.store import Store
from node.vote_keys import VoteKeys
from protocol.budgets import BudgetRequest
from protocol.charter import Rate
from protocol.identifiers import compute_account_id

GENESIS_SECONDS = 1_800_000_000
EPOCH_SECONDS = 1000
CAP = 1_000_000
ALLOWANCE = 1000
DRAFT = api.ProgramDraft("Students", "An hour each", ALLOWANCE, 2, False, ["train", "infer"])


def make_keys(number):
    return tuple(Key(bytes([number, role]) * 16, purpose) for role, purpose in enumerate(("member", "vote", "peer"), 1))


def make_card(number, name=None):
    member, vote, peer = make_keys(number)
    address = f"/ip4/127.0.0.1/tcp/{4000 + number}"
    return FounderCard(name or f"Member {number}", member.public_key, vote.public_key, peer.public_key, address)


def make_options(**changes):
    return DraftOptions(
        **{"name": "Commons", "genesis_seconds": GENESIS_SECONDS, "rates": (Rate("L4", 258),), **changes}
    )


class Institution:
    """One member with its store and outbox; it can be killed and started again."""

    def __init__(self, path, nursery):
        draft = compose_draft(
            [make_card(1)], make_options(is_dev=True, epoch_seconds=EPOCH_SECONDS, cap_millicredits=CAP)
        )
        charter = open_draft(draft, path)
        self.founded = join_signatures(draft, charter, [sign_draft(charter, *make_keys(1))]).decode()
        self.charter = self.founded.charter
        self.now = GENESIS_SECONDS + 10.0
        self.path = path
        self.store = Store.open(":memory:", charter.federation)
        self.nursery = nursery
        self.people = 0
        self.open()

    def open(self, is_speaking=True):
        self.member = LedgerMember(self.founded, 1, VoteKeys([make_keys(1)[1]]), self.store, lambda: self.now)
        self.actions = OperatorActions(
            self.member,
            make_keys(1)[0],
            Outbox(self.path / "outbox", self.charter.federation),
            final_seconds=5 if is_speaking else 0,
        )
        self.conduct = ConductActions(self.actions, lambda: self.now)
        self.scope = trio.CancelScope()
        if is_speaking:
            self.nursery.start_soon(self.speak, self.scope)

    async def speak(self, scope):
        with scope:
            await self.member.speak()

    async def restart(self, is_speaking=True):
        """As after a kill: what was not stored is gone."""
        self.scope.cancel()
        self.store = Store.restore(self.store.serialize(), self.charter.federation)
        self.open(is_speaking)
        await self.member.restore()

    def ask(self, program, *, key=None, tag=None, epoch=1):
        """A person's request for a budget, as it lies in the store; returns its id as text."""
        self.people += 1
        key = key or Ed25519PrivateKey.from_private_bytes(bytes([0, self.people]) * 16)
        public_key = key.public_key().public_bytes_raw()
        account = compute_account_id(self.charter.federation, public_key)
        tag = tag or bytes([self.people]) * 32
        request = BudgetRequest(program, 1, epoch, tag, account, public_key, "Please!", b"", b"")
        request = request.sign(self.charter, key)
        request_id = request.compute_id(self.charter.federation)
        self.store.put_budget_request(request_id, program, account, request.encode())
        return encode_address(Kind.RECORD, request_id), account


def name_program(program):
    return encode_address(Kind.PROGRAM, program)


def name_account(account):
    return encode_address(Kind.ACCOUNT, account)


async def make_program(institution, **changes):
    draft = api.ProgramDraft(**{**{f: getattr(DRAFT, f) for f in DRAFT.__struct_fields__}, **changes})
    signed = await institution.actions.create_program(draft)
    assert [record.state for record in signed.records] == ["applied"]
    return decode_address(Kind.RECORD, signed.records[0].id)


async def make_participants(institution, program, count):
    asked = [institution.ask(program) for _ in range(count)]
    for request, _ in asked:
        await institution.actions.approve(request)
    return [account for _, account in asked]
