"""The golden vectors are what the code makes today: a changed byte is a changed protocol."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from protocol.batches import decode_batch
from protocol.budgets import decode_budget_request
from protocol.charter import decode_charter, decode_founded_charter
from protocol.evidence import verify_evidence
from protocol.receipts import verify_receipt
from protocol.records import decode_record, has_valid_signatures
from protocol.statements import decode_statement, encode_statement

ROOT = Path(__file__).resolve().parent.parent.parent
VECTORS = json.loads((ROOT / "tests" / "vectors" / "encodings.json").read_text(encoding="utf-8"))
CHARTER = decode_charter(bytes.fromhex(VECTORS["charter"]))


def test_the_vectors_are_current():
    command = [sys.executable, str(ROOT / "scripts" / "make_vectors"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


def test_ids_and_encodings_are_the_recorded_ones():
    federation = CHARTER.federation
    assert federation.hex() == VECTORS["federation"]
    assert decode_founded_charter(bytes.fromhex(VECTORS["founded_charter"])).charter.federation == federation
    for vector in VECTORS["records"]:
        record = decode_record(federation, bytes.fromhex(vector["encoded"]))
        assert (record.kind, record.id.hex()) == (vector["kind"], vector["id"])
        assert has_valid_signatures(record)
    for vector in VECTORS["batches"]:
        assert decode_batch(federation, bytes.fromhex(vector["encoded"])).id.hex() == vector["id"]
    for encoded in VECTORS["statements"]:
        assert encode_statement(decode_statement(bytes.fromhex(encoded))).hex() == encoded


def test_signed_documents_still_prove_what_they_proved():
    assert decode_budget_request(CHARTER, bytes.fromhex(VECTORS["budget_request"])).member == 1
    assert verify_receipt({0: CHARTER}, bytes.fromhex(VECTORS["receipt"])).members == (1, 2, 3)
    for vector in VECTORS["evidence"]:
        verdict = verify_evidence({0: CHARTER}, bytes.fromhex(vector["encoded"]))
        assert (verdict.kind, list(verdict.members)) == (vector["kind"], vector["members"])
        assert [key.hex() for key in verdict.keys] == vector["keys"]
