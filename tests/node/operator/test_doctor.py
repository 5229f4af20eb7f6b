"""The doctor finds what is wrong, and what is right it leaves alone."""

import socket
import sqlite3
from pathlib import Path

import pytest

from node.config import Federation, NodeConfig, NodeHome, make_home
from node.errors import UserError
from node.files import lock_directory
from node.operator import doctor
from node.operator.founding import compose_draft, open_draft
from node.storage.store import Store
from tests.node.operator.institution import make_card, make_options

DRAFT = Path("draft")


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def get_states(checks):
    return {check.name: check.state for check in checks}


def test_a_directory_that_others_may_enter_is_found(tmp_path):
    home = make_home(tmp_path / "a")
    assert doctor.check_directory(home.path).state == "ok"
    home.path.chmod(0o750)
    check = doctor.check_directory(home.path)
    assert (check.state, check.actual[:9]) == ("failed", "mode 0750")
    assert f"chmod 700 {home.path}" in check.remedy
    assert doctor.check_directory(tmp_path / "none").state == "failed"


def test_the_disk_is_tried_and_left_as_it_was(tmp_path):
    assert doctor.check_disk_keeps(tmp_path).state in ("ok", "warning")
    assert list(tmp_path.iterdir()) == []
    assert doctor.check_disk_keeps(tmp_path / "none").state == "failed"


def test_a_port_that_another_program_has_is_found(listener):
    port = listener.getsockname()[1]
    config = NodeConfig("A", f"/ip4/127.0.0.1/tcp/{port}", "127.0.0.1:0")
    assert get_states(doctor.check_ports(config, is_running=False)) == {"p2p port": "failed", "http port": "ok"}
    assert get_states(doctor.check_ports(config, is_running=True)) == {"p2p port": "ok", "http port": "failed"}


def test_peers_that_answer_and_peers_that_do_not(listener):
    draft = compose_draft([make_card(number) for number in (1, 2, 3, 4)], make_options())
    charter = open_draft(draft, DRAFT)
    addresses = {**draft.addresses, "Member 2": f"/ip4/127.0.0.1/tcp/{listener.getsockname()[1]}", "Member 3": ""}
    addresses["Member 4"] = "/ip4/127.0.0.1/tcp/0"
    federation = Federation(b"", draft.federation, addresses)
    states = get_states(doctor.check_peers(federation, charter, charter.members[1]))
    assert states == {"peer Member 2": "ok", "peer Member 3": "warning", "peer Member 4": "warning", "quorum": "ok"}


def test_too_few_members_for_a_quorum_are_no_mere_warning():
    draft = compose_draft([make_card(number) for number in (1, 2, 3, 4)], make_options())
    charter = open_draft(draft, DRAFT)
    federation = Federation(b"", draft.federation, dict.fromkeys(draft.addresses, "/ip4/127.0.0.1/tcp/0"))
    assert get_states(doctor.check_peers(federation, charter, charter.members[1]))["quorum"] == "failed"


def test_a_clock_outside_the_charter_is_found():
    early = open_draft(compose_draft([make_card(1)], make_options(is_dev=True, genesis_seconds=2**32)), DRAFT)
    assert "before" in doctor.check_epoch(early).actual
    over = open_draft(compose_draft([make_card(1)], make_options(is_dev=True, genesis_seconds=0, epochs=1)), DRAFT)
    assert doctor.check_epoch(over).state == "failed"


def test_a_server_with_another_time_or_none_is_a_warning():
    assert doctor.check_clock("http://a", lambda url: 0.0).state == "warning"

    def fail(url):
        raise UserError("does not answer")

    assert doctor.check_clock("http://a", fail).actual == "does not answer"


def test_a_ledger_that_cannot_be_used_is_found_and_not_changed(tmp_path):
    home, federation = NodeHome(tmp_path), bytes([1]) * 32
    assert "none yet" in doctor.check_ledger(home, federation, is_running=False).actual
    Store.open(home.ledger, federation).close()
    assert doctor.check_ledger(home, federation, is_running=False).state == "ok"
    assert doctor.check_ledger(home, bytes([2]) * 32, is_running=False).state == "failed"
    with sqlite3.connect(home.ledger) as connection:
        connection.execute("INSERT INTO schema_version (version) VALUES (99)")
    connection.close()
    assert "newer" in doctor.check_ledger(home, federation, is_running=False).actual
    home.ledger.write_bytes(b"something else")
    assert doctor.check_ledger(home, federation, is_running=False).state == "failed"


def test_a_home_that_is_locked_is_known_to_run(tmp_path):
    assert not doctor.is_node_running(tmp_path)
    with lock_directory(tmp_path, "node"):
        assert doctor.is_node_running(tmp_path)
    assert not doctor.is_node_running(tmp_path)
