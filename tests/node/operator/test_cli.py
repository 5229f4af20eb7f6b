"""An institution from its first command to its first grant, with a real node of a federation of one."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from contextlib import contextmanager
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import cli
from node.addresses import Kind, decode_address
from node.client import NodeClient
from node.config import NodeHome
from node.operator.founding import FounderCard
from protocol.budgets import BudgetRequest
from protocol.charter import decode_founded_charter
from protocol.identifiers import compute_account_id


@pytest.fixture
def allmende(capfd):
    """Runs one command as a person would; its output or, for another status, what it says on standard error."""

    def run(*arguments, status=0):
        words = [str(argument) for argument in arguments]
        capfd.readouterr()
        result = cli.run(words)
        captured = capfd.readouterr()
        assert result == status, captured.err
        if status:
            assert sum(line.startswith("Error: ") for line in captured.err.splitlines()) == 1, captured.err
            return captured.err
        return json.loads(captured.out) if "--json" in words else captured.out

    return run


def find_port():
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


def init(allmende, home, name="University A", *more, status=0):
    return allmende(
        *("node", "init", "--home", home, "--name", name, "--p2p", f"/ip4/127.0.0.1/tcp/{find_port()}"),
        *("--http", f"127.0.0.1:{find_port()}", *more),
        status=status,
    )


def found(allmende, path, home):
    allmende(
        *("charter", "draft", home / "founder.json", "--name", "Trial", "--dev", "--cap", 100),
        *("--out", path / "charter.json"),
    )
    allmende("charter", "sign", path / "charter.json", "--home", home, "--out", path / "a.signature", "-y")
    allmende("charter", "found", path / "charter.json", path / "a.signature", "--out", path / "federation.json")
    return path / "federation.json"


@pytest.fixture
def home(allmende, tmp_path):
    init(allmende, tmp_path / "a")
    return tmp_path / "a"


@contextmanager
def run_node(home, *more):
    """The node as a process of its own, until the block ends."""
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "node", "node", "run", "--home", str(home), *map(str, more)], stderr=writer
    )
    os.close(writer)
    with open(reader) as log:
        try:
            assert any("ready" in line for line in log), "the node has started"
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            log.read()
            assert process.wait(timeout=30) == 0


def test_a_new_node_has_private_keys_and_a_public_card(allmende, tmp_path):
    answer = init(allmende, tmp_path / "a", "University A", "--json")
    home = NodeHome(tmp_path / "a")
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    for _, path in home.keys:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert answer["founder"]["name"] == "University A"
    assert set(answer["founder"]) == set(FounderCard.__struct_fields__)
    assert home.load_config().name == "University A"
    before = home.member_key.read_bytes()
    assert "already" in init(allmende, tmp_path / "a", status=1)
    assert home.member_key.read_bytes() == before


def test_keys_are_encrypted_when_a_passphrase_is_given(allmende, tmp_path):
    (tmp_path / "passphrase").touch(0o600)
    (tmp_path / "passphrase").write_text("correct horse\n")
    init(allmende, tmp_path / "a", "A", "--passphrase-file", tmp_path / "passphrase")
    assert '"encryption": {' in (tmp_path / "a" / "member.key").read_text()
    allmende(
        *("charter", "draft", tmp_path / "a" / "founder.json", "--name", "T", "--dev"),
        *("--out", tmp_path / "charter.json"),
    )
    sign = ("charter", "sign", tmp_path / "charter.json", "--home", tmp_path / "a", "--out", tmp_path / "s")
    assert "passphrase" in allmende(*sign, "-y", status=1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--p2p", "/ip4/0.0.0.0/tcp/4001"), "--announce"),
        (("--p2p", "localhost:4001"), "no network address"),
        (("--http", "nowhere"), "HOST:PORT"),
        (("--name", ""), "name must be"),
    ],
)
def test_a_wrong_setting_leaves_nothing_behind(allmende, tmp_path, arguments, told):
    given = {"--name": "A", "--p2p": "/ip4/127.0.0.1/tcp/4001", **dict([arguments])}
    flat = [word for pair in given.items() for word in pair]
    assert told in allmende("node", "init", "--home", tmp_path / "a", *flat, status=1)
    assert not (tmp_path / "a").exists()


def test_who_signs_is_asked_first(allmende, tmp_path, home):
    allmende("charter", "draft", home / "founder.json", "--name", "T", "--dev", "--out", tmp_path / "charter.json")
    sign = ("charter", "sign", tmp_path / "charter.json", "--home", home, "--out", tmp_path / "a.signature")
    complaint = allmende(*sign, status=1)
    assert "may grant 1000000.000 credits an epoch" in complaint, "what it means is shown before the question"
    assert not (tmp_path / "a.signature").exists()


def test_a_charter_is_shown_before_and_after_the_founding(allmende, tmp_path, home):
    federation = found(allmende, tmp_path, home)
    assert "not yet founded" in allmende("charter", "show", tmp_path / "charter.json")
    shown = allmende("charter", "show", federation)
    assert "Signed by all its founders" in shown
    assert "Acceptable use of donated compute" in shown
    terms = allmende("charter", "show", federation, "--json")["terms"]
    assert terms["rates"]["A100-SXM4-80GB"] == 1000
    assert "is no federation file" in allmende("charter", "show", home / "founder.json", status=1)


def test_a_node_without_a_federation_or_of_another_one_does_not_start(allmende, tmp_path, home):
    assert "belongs to no federation yet" in allmende("node", "run", "--home", home, status=1)
    init(allmende, tmp_path / "b", "University B")
    foreign = found(allmende, tmp_path, tmp_path / "b")
    assert "founder.json" in allmende("node", "run", "--home", home, "--federation", foreign, status=1)
    assert not (home / "federation.json").exists()
    assert "does not run" in allmende("node", "status", "--home", home, status=3)


def test_the_doctor_tells_what_is_wrong_and_how_to_mend_it(allmende, tmp_path, home, capfd):
    (home / "member.key").chmod(0o644)
    capfd.readouterr()
    assert cli.run(["node", "doctor", "--home", str(home)]) == 1
    report = capfd.readouterr().out
    assert f"remedy:   run `chmod 600 {home}/member.key`" in report
    assert "failed  membership" in report
    (home / "member.key").chmod(0o600)
    home_of_federation = found(allmende, tmp_path, home)
    (home / "federation.json").write_bytes(home_of_federation.read_bytes())
    checks = allmende("node", "doctor", "--home", home, "--json")
    assert checks["failed"] == 0
    assert {"python", "disk writes", "p2p port", "membership", "clock", "ledger"} <= {
        c["name"] for c in checks["checks"]
    }


def ask(url, program, member):
    """A person asks for a budget, as a wallet does."""
    with NodeClient(url) as client:
        charter = decode_founded_charter(client.get_charter().founded).charter
        key = Ed25519PrivateKey.generate()
        public_key = key.public_key().public_bytes_raw()
        account = compute_account_id(charter.federation, public_key)
        request = BudgetRequest(
            decode_address(Kind.PROGRAM, program), member, 1, os.urandom(32), account, public_key, "Hi", b"", b""
        )
        return client.post_budget_request(request.sign(charter, key).encode())


def test_an_institution_gives_its_first_budget(allmende, tmp_path, home):
    federation = found(allmende, tmp_path, home)
    url = f"http://{NodeHome(home).load_config().http}"
    with run_node(home, "--federation", federation):
        assert "University A" in allmende("node", "status", "--home", home)
        assert allmende("node", "status", "--url", url, "--json")["epoch"] == 1
        assert allmende("node", "doctor", "--home", home, "--json")["failed"] == 0
        assert "this node" in allmende("member", "ls", "--home", home)

        create = ("program", "create", "Students", "--allowance", "2.5", "--home", home)
        assert "Nobody can be asked" in allmende(*create, status=1)
        assert allmende(*create, "--dry-run", "--json")["dry_run"]
        program = allmende(*create, "-y", "--json")["program"]
        assert "already" in allmende(*create, "-y", status=1)
        assert program in allmende("program", "ls", "--home", home)
        assert "2.500 credits a person" in allmende("program", "show", program, "--home", home)

        first, second = ask(url, program, 1), ask(url, program, 1)
        listed = allmende("program", "requests", "--home", home, "--json")["requests"]
        assert [request["id"] for request in listed] == [first.id, second.id]
        allmende("program", "approve", first.id[:16], "--home", home, "-y")
        allmende("program", "approve", "--all", program, "--home", home, "-y")
        assert "Nobody asks" in allmende("program", "requests", "--home", home)
        assert "5.000 credits" in allmende("program", "grant", program, "--home", home, "-y")
        assert "Nothing to grant" in allmende("program", "grant", program, "--home", home)
        with NodeClient(url) as client:
            assert client.get_account(first.account).millicredits == 2500

        evidence = tmp_path / "case.txt"
        evidence.write_text("What happened.")
        suspend = ("program", "suspend", first.account, "--reason", 3, "--days", 14, "--appeal", "board@a.org")
        assert "Nobody can be asked" in allmende(*suspend, "--home", home, status=1)
        assert "Would be signed" in allmende(*suspend, "--home", home, "--dry-run")
        assert "No account is suspended" in allmende("program", "suspended", "--home", home)
        allmende(*suspend, "--evidence", evidence, "--home", home, "-y")
        suspended = allmende("program", "suspended", "--url", url)
        assert "appeal: board@a.org" in suspended
        assert "UTC, the end of epoch" in suspended
        (entry,) = allmende("program", "suspended", "--home", home, "--json")["suspensions"]
        assert entry["evidence"] == sha256(evidence.read_bytes()).hexdigest()
        allmende("program", "reinstate", first.account, "--home", home, "-y")
        assert "No account is suspended" in allmende("program", "suspended", "--home", home)
        assert "no request to leave" in allmende("program", "leave", evidence, "--home", home, "-y", status=1)

        sponsored = allmende("member", "sponsor", first.account, "--epochs", 2, "--home", home, "-y", "--json")
        assert sponsored["records"][0]["state"] == "applied"
        assert "is an account" in allmende("program", "grant", first.account, "--home", home, "-y", status=1)
    with run_node(home):
        assert program in allmende("program", "ls", "--home", home)


def test_a_ledger_is_certified_pruned_and_audited(allmende, tmp_path, home):
    federation = found(allmende, tmp_path, home)
    there = ("--home", home)
    with run_node(home, "--federation", federation):
        allmende("program", "create", "Students", "--allowance", 10, "--purpose", "courses", "-y", *there)
        certified = allmende("node", "checkpoint", "--json", *there)
        allmende("program", "create", "Staff", "--allowance", 10, "--purpose", "research", "-y", *there)
        before = allmende("node", "status", "--json", *there)
    assert certified["snapshot_bytes"] > 0
    sound = allmende("node", "audit", "--json", *there)
    assert (sound["checkpoints"], sound["records"], sound["problems"]) == (1, 2, [])
    assert allmende("node", "prune", "--json", *there)["archived"] > 0
    with run_node(home):
        after = allmende("node", "status", "--json", *there)
        assert (after["state_root"], after["records_final"]) == (before["state_root"], before["records_final"])
        assert allmende("node", "fetch-archive", "--json", *there) == {"batches": 0, "missing": 0}
    assert allmende("node", "audit", "--json", *there) == sound
    (file,) = (home / "archive").iterdir()
    file.rename(tmp_path / "elsewhere")
    assert "fetch-archive" in allmende("node", "audit", *there, status=1)
