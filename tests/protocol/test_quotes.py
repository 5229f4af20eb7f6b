"""Offers, requests, quotes, receipts and messages: one spelling, one signer, and no way to change a term later."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from protocol.charter import Charter, CharterFields, Member, Policy
from protocol.codec import encode
from protocol.conversation import (
    Cancel,
    LogChunk,
    Script,
    Start,
    VoucherGiven,
    decode_envelope,
    decode_message,
    decode_script,
    encode_envelope,
    encode_message,
)
from protocol.errors import InvalidInput, Rejected
from protocol.identifiers import compute_account_id
from protocol.limits import PROTOCOL_VERSION
from protocol.metering import REFUND_TABLE_VERSION, JobState, Rate, compute_charge
from protocol.quotes import (
    NO_EXIT_STATUS,
    JobReceipt,
    Offer,
    OfferedGpu,
    Quote,
    QuoteRequest,
    RuntimeName,
    check_hold,
    check_quote,
    check_request_fits,
    compute_rate,
    decode_job_receipt,
    decode_offer,
    decode_quote,
    decode_quote_request,
)
from protocol.records import Draw, Hold, Kind, RecordDraft, Terms, account_scope, sign_record


def make_key(number):
    return Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)


def get_public(key):
    return key.public_key().public_bytes_raw()


DONOR, METER, PAYER, STRANGER = (make_key(number) for number in (11, 12, 13, 14))


@pytest.fixture(scope="module")
def charter():
    member_key, vote_key, peer_key = (get_public(make_key(number)) for number in (1, 2, 3))
    member = Member(1, "Hochschule", member_key, vote_key, peer_key, 1, (10**9,), 0)
    policy = Policy(bytes(32), 60, 7200, 0, 50, 2**20)
    return Charter(CharterFields(0, b"", "Test", b"n" * 16, 0, 86400, 0, 1, (member,), (), policy))


@pytest.fixture(scope="module")
def offer(charter):
    unsigned = Offer(
        get_public(DONOR),
        b"s" * 32,
        b"r" * 32,
        "https://node.example",
        "bench",
        8,
        16 * 10**9,
        100 * 10**9,
        0,
        (OfferedGpu("A100-SXM4-80GB", 85),),
        7,
        (RuntimeName("python-ml", b"d" * 32),),
        ("batch", "training"),
        ("data.example:443",),
        3600,
        1000,
        b"",
    )
    return unsigned.sign(charter.federation, DONOR)


@pytest.fixture(scope="module")
def request_(charter):
    account = compute_account_id(charter.federation, get_public(PAYER))
    unsigned = QuoteRequest(
        account,
        get_public(METER),
        b"w" * 32,
        b"o" * 32,
        2,
        4 * 10**9,
        10**9,
        0,
        0,
        600,
        b"d" * 32,
        "batch",
        b"a" * 32,
        b"b" * 32,
        b"",
    )
    return unsigned.sign(charter.federation, METER)


@pytest.fixture(scope="module")
def quote(charter, offer, request_):
    rate = compute_rate(offer, request_)
    unsigned = Quote(
        get_public(DONOR),
        request_.compute_id(charter.federation),
        offer.sponsor,
        rate,
        600,
        30,
        compute_charge(600_000, rate),
        3600,
        REFUND_TABLE_VERSION,
        0,
        1300,
        b"",
    )
    return unsigned.sign(charter.federation, DONOR)


@pytest.fixture(scope="module")
def receipt(charter, quote):
    unsigned = JobReceipt(
        b"h" * 32,
        quote.compute_id(charter.federation),
        JobState.DONE,
        0,
        59_000,
        1,
        10**8,
        0,
        b"o" * 32,
        52,
        b"t" * 32,
        b"",
        b"",
    )
    return unsigned.sign_as_donor(charter.federation, DONOR)


def test_what_was_signed_survives_its_encoding(charter, offer, request_, quote, receipt):
    assert decode_offer(charter, offer.encode()) == offer
    assert decode_quote_request(charter, request_.encode()) == request_
    assert decode_quote(charter, quote.encode()) == quote
    both = receipt.sign_as_payer(charter.federation, METER)
    keys = get_public(DONOR), get_public(METER)
    assert decode_job_receipt(charter, receipt.encode(), *keys) == receipt
    assert decode_job_receipt(charter, both.encode(), *keys) == both
    assert both.compute_id(charter.federation) == receipt.compute_id(charter.federation)


@given(data=st.data())
def test_no_changed_byte_gets_through(charter, offer, request_, quote, receipt, data):
    decoders = [
        (offer, lambda encoded: decode_offer(charter, encoded)),
        (request_, lambda encoded: decode_quote_request(charter, encoded)),
        (quote, lambda encoded: decode_quote(charter, encoded)),
        (receipt, lambda encoded: decode_job_receipt(charter, encoded, get_public(DONOR), get_public(METER))),
    ]
    value, decoder = data.draw(st.sampled_from(decoders))
    encoded = bytearray(value.encode())
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InvalidInput):
        decoder(bytes(encoded))


def test_what_a_stranger_signed_is_refused(charter, offer, request_, quote, receipt):
    federation, keys = charter.federation, (get_public(DONOR), get_public(METER))
    with pytest.raises(InvalidInput):
        decode_offer(charter, offer.sign(federation, STRANGER).encode())
    with pytest.raises(InvalidInput):
        decode_quote_request(charter, request_.sign(federation, STRANGER).encode())
    with pytest.raises(InvalidInput):
        decode_quote(charter, quote.sign(federation, STRANGER).encode())
    with pytest.raises(InvalidInput):
        decode_job_receipt(charter, receipt.sign_as_payer(federation, STRANGER).encode(), *keys)
    with pytest.raises(InvalidInput):
        decode_offer(charter, offer.sign(bytes(32), DONOR).encode())


def test_a_quote_that_puts_aside_more_than_its_charge_is_refused(charter, quote):
    dearer = quote._replace(amount_max=quote.amount_max + 1).sign(charter.federation, DONOR)
    with pytest.raises(InvalidInput, match="another amount"):
        decode_quote(charter, dearer.encode())


def test_a_quote_must_keep_what_the_offer_says(charter, offer, request_, quote):
    federation = charter.federation
    check_quote(federation, quote, request_, offer)
    for wrong in (
        quote._replace(rate=quote.rate._replace(weight=8)),
        quote._replace(request=b"x" * 32),
        quote._replace(wall_seconds=601),
        quote._replace(sponsor=b"x" * 32),
        quote._replace(donor_key=get_public(STRANGER)),
    ):
        with pytest.raises(InvalidInput):
            check_quote(federation, wrong, request_, offer)


def test_disk_in_memory_is_priced_as_memory(offer, request_):
    assert compute_rate(offer, request_) == Rate(7, 2, 4, 0)
    assert compute_rate(offer._replace(is_disk_in_memory=1), request_) == Rate(7, 2, 5, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"cores": 9},
        {"memory_bytes": 17 * 10**9},
        {"disk_bytes": 101 * 10**9},
        {"gpus": 2},
        {"wall_seconds": 3601},
        {"job_class": "games"},
        {"runtime": b"e" * 32},
    ],
)
def test_what_a_machine_does_not_have_is_refused(offer, request_, changes):
    check_request_fits(offer, request_)
    check_request_fits(offer, request_._replace(runtime=b""))
    with pytest.raises(Rejected, match="bench"):
        check_request_fits(offer, request_._replace(**changes))


def make_hold(charter, answer, request_, **changes):
    terms = Terms(0, answer.compute_id(charter.federation), get_public(METER), 3600, bytes(32), answer.sponsor, "batch")
    payee = compute_account_id(charter.federation, get_public(DONOR))
    amount = changes.pop("amount", answer.amount_max)
    payee = changes.pop("payee", payee)
    body = Hold(payee, (Draw(b"", 0, amount),), terms._replace(**changes))
    draft = RecordDraft(Kind.HOLD, 1, account_scope(request_.account), 0, b"", body, (get_public(PAYER),))
    return sign_record(charter.federation, draft, [PAYER])


def test_only_a_hold_with_the_terms_of_the_quote_pays_for_it(charter, quote, request_):
    check_hold(charter.federation, make_hold(charter, quote, request_), quote, request_)
    for changes in (
        {"amount": quote.amount_max - 1},
        {"payee": b"x" * 32},
        {"quote": b"x" * 32},
        {"meter_key": get_public(STRANGER)},
        {"grace_seconds": 3599},
        {"sponsor": b"x" * 32},
        {"job_class": "training"},
    ):
        with pytest.raises(InvalidInput):
            check_hold(charter.federation, make_hold(charter, quote, request_, **changes), quote, request_)
    other = request_._replace(account=b"x" * 32)
    with pytest.raises(InvalidInput):
        check_hold(charter.federation, make_hold(charter, quote, request_), quote, other)


def test_a_receipt_names_an_end_of_a_job(charter, receipt):
    running = receipt._replace(state=JobState.RUNNING, exit_status=NO_EXIT_STATUS)
    with pytest.raises(InvalidInput, match="no end"):
        decode_job_receipt(
            charter, running.sign_as_donor(charter.federation, DONOR).encode(), get_public(DONOR), get_public(METER)
        )


MAILBOX = b"m" * 32
MESSAGES = [
    Start(b"receipt", b"i" * 32, b"v" * 64),
    VoucherGiven(3, 500, b"v" * 64),
    Cancel("enough"),
    LogChunk(7, b"text"),
]


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_survive_their_encoding_and_their_envelope(charter, message):
    assert decode_message(encode_message(message)) == message
    envelope = encode_envelope(charter.federation, METER, MAILBOX, 4, message)
    assert decode_envelope(charter.federation, get_public(METER), MAILBOX, envelope) == (4, message)


def test_an_envelope_can_be_neither_moved_nor_renumbered_nor_forged(charter):
    federation, sender = charter.federation, get_public(METER)
    envelope = encode_envelope(federation, METER, MAILBOX, 4, Cancel("enough"))
    with pytest.raises(InvalidInput):
        decode_envelope(federation, sender, b"x" * 32, envelope)
    with pytest.raises(InvalidInput):
        decode_envelope(federation, get_public(STRANGER), MAILBOX, envelope)
    renumbered = encode((PROTOCOL_VERSION, 5, encode_message(Cancel("enough")), envelope[-64:]))
    with pytest.raises(InvalidInput):
        decode_envelope(federation, sender, MAILBOX, renumbered)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_decoders(charter, junk):
    for decoder in (
        lambda: decode_offer(charter, junk),
        lambda: decode_quote_request(charter, junk),
        lambda: decode_quote(charter, junk),
        lambda: decode_message(junk),
        lambda: decode_script(junk),
    ):
        with pytest.raises(InvalidInput):
            decoder()


def test_a_script_survives_its_encoding():
    script = Script("pip list\n", "python3 train.py", (("EPOCHS", "20"),))
    assert decode_script(script.encode()) == script


def test_golden_ids(charter, offer, request_, quote, receipt):
    federation = charter.federation
    found = [value.compute_id(federation).hex()[:16] for value in (offer, request_, quote, receipt)]
    assert found == ["7fdf98f9902698d5", "2c3df972cf6a794b", "92c7cb8df2b2895e", "d723086c7491b501"]
