"""The client says in one line why there is no answer, repeats what may be repeated, and trusts no answer's size."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from node import api, client, http_calls
from node.client import NodeClient
from node.errors import RecordRefused, Unreachable, UserError
from protocol.errors import Reason, Rejected

ROOT = Path(__file__).resolve().parents[2]
HEALTH = b'{"status":"ok"}'


def answer(status: bytes, body: bytes, *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def read_request(connection: socket.socket) -> bytes:
    """One request, whole."""
    content = b""
    while b"\r\n\r\n" not in content:
        piece = connection.recv(65536)
        if not piece:
            return b""
        content += piece
    head, _, body = content.partition(b"\r\n\r\n")
    length = int((head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or b"0").strip())
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


class ScriptedNode:
    """Gives each connection the next of some answers: bytes to send, or None to break the connection."""

    def __init__(self, *answers: bytes | None) -> None:
        self.requests: list[bytes] = []
        self._answers = list(answers)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        while self._answers:
            connection, _ = self._listener.accept()
            with connection:
                request = read_request(connection)
                if not request:
                    return
                self.requests.append(request)
                reply = self._answers.pop(0)
                if reply is None:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                else:
                    connection.sendall(reply)

    def __enter__(self) -> ScriptedNode:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        with suppress(OSError):  # wakes the thread, if it still waits for somebody
            socket.create_connection(self._listener.getsockname(), timeout=1).close()
        self._thread.join(5)
        self._listener.close()


@contextmanager
def ask(*answers: bytes | None) -> Iterator[tuple[ScriptedNode, NodeClient]]:
    with ScriptedNode(*answers) as scripted, NodeClient(scripted.url, 5) as opened:
        yield scripted, opened


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (client, http_calls):
        monkeypatch.setattr(module, "RETRY_PAUSES_SECONDS", (0.01, 0.01))


def check_one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert text
    return text


def test_a_node_that_does_not_run_is_named_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with NodeClient(url) as opened, pytest.raises(Unreachable) as failed:
        opened.get_health()
    assert check_one_line(failed.value) == (
        f"the node at {url} does not answer: start it with `allmende node run`, or choose another with --node"
    )
    assert failed.value.exit_status == 3


def test_a_socket_that_is_not_there_is_named(tmp_path: Path) -> None:
    with NodeClient(tmp_path / "operator.sock") as opened, pytest.raises(Unreachable, match=r"operator\.sock does not"):
        opened.get_health()


@pytest.mark.parametrize("place", ["", "localhost:8080", "ftp://x", "http://", "http://x:port", "http://me@x", "x y"])
def test_what_is_no_address_is_refused_before_anything_is_sent(place: str) -> None:
    with pytest.raises(UserError, match="no address of a node"):
        NodeClient(place)


def test_a_broken_connection_is_tried_again() -> None:
    with ask(None, None, answer(b"200 OK", HEALTH)) as (scripted, opened):
        assert opened.get_health() == api.Health("ok")
        assert len(scripted.requests) == 3


def test_a_connection_that_always_breaks_is_given_up() -> None:
    with ask(None, None, None) as (_, opened), pytest.raises(Unreachable) as failed:
        opened.get_health()
    check_one_line(failed.value)


def test_a_busy_node_is_asked_again() -> None:
    busy = answer(b"503 Service Unavailable", b"", b"Connection: close")
    with ask(busy, busy, answer(b"200 OK", HEALTH)) as (_, opened):
        assert opened.get_health() == api.Health("ok")
    with ask(busy, busy, busy) as (_, opened), pytest.raises(Unreachable, match="busy"):
        opened.get_health()


def test_a_letter_is_not_sent_twice() -> None:
    with ask(None, answer(b"201 Created", b'{"sequence":1}')) as (scripted, opened):
        with pytest.raises(Unreachable):
            opened.post_message(bytes(32), b"letter")
        assert len(scripted.requests) == 1


def test_a_silent_node_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with NodeClient(url, 0.2) as opened, pytest.raises(Unreachable, match="in time"):
            opened.get_health()


def test_a_refusal_carries_the_reason_of_the_rule() -> None:
    body = b'{"type":"about:blank","title":"Conflict","status":409,"detail":"slot taken","reason":"SLOT_TAKEN"}'
    with ask(answer(b"409 Conflict", body)) as (_, opened), pytest.raises(RecordRefused) as refused:
        opened.submit_record(b"record")
    assert (refused.value.reason, str(refused.value), refused.value.exit_status) == (Reason.SLOT_TAKEN, "slot taken", 4)
    assert isinstance(refused.value, Rejected)


def test_foreign_text_is_made_harmless() -> None:
    detail = "evil\\u001b[2J\\nsecond line" + "x" * 5000
    body = b'{"type":"about:blank","title":"x","status":400,"detail":"%s"}' % detail.encode()
    with ask(answer(b"400 Bad Request", body)) as (_, opened), pytest.raises(UserError) as refused:
        opened.get_health()
    text = check_one_line(refused.value)
    assert "\x1b" not in text
    assert len(text) < 600


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"status": 1}', b"[]", b"\xff"])
def test_an_answer_of_something_else_is_said_to_be_so(body: bytes) -> None:
    with (
        ask(answer(b"200 OK", body)) as (_, opened),
        pytest.raises(UserError, match="is it an Allmende node") as failed,
    ):
        opened.get_health()
    check_one_line(failed.value)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 99999,
    ],
)
def test_noise_is_unreachable(reply: bytes) -> None:
    with ask(reply, reply, reply) as (_, opened), pytest.raises(UserError) as failed:
        opened.get_health()
    check_one_line(failed.value)


@pytest.mark.parametrize("status", [b"301 Moved", b"404 Not Found", b"403 Forbidden", b"500 Oops", b"502 Bad Gateway"])
def test_every_other_status_is_one_line(status: bytes) -> None:
    with ask(answer(status, b"<html>")) as (_, opened), pytest.raises(UserError, match=status[:3].decode()) as failed:
        opened.get_health()
    check_one_line(failed.value)
    assert isinstance(failed.value, Unreachable) == status.startswith(b"5")


def test_an_answer_without_end_is_cut_off() -> None:
    with (
        ScriptedNode(answer(b"200 OK", b"x" * 2000)) as scripted,
        NodeClient(scripted.url, 5, json_bytes_max=1000) as opened,
        pytest.raises(Unreachable, match="larger than 1000"),
    ):
        opened.get_health()


def test_a_bundle_with_another_hash_is_refused() -> None:
    with ask(answer(b"200 OK", b"other")) as (_, opened), pytest.raises(UserError, match="another content"):
        opened.get_blob(bytes(32))


def test_a_prefix_of_the_address_is_kept() -> None:
    with ScriptedNode(answer(b"200 OK", HEALTH)) as scripted, NodeClient(scripted.url + "/node/", 5) as opened:
        opened.get_health()
        assert scripted.requests[0].startswith(b"GET /node/v1/health HTTP/1.1\r\n")


def test_addresses_from_people_cannot_leave_their_place_in_the_path() -> None:
    reply = answer(b"404 Not Found", b"")
    with ask(reply) as (scripted, opened):
        assert opened.get_record(" ../../x?y=1#z\r\nX: y ") is None
        assert scripted.requests[0].split(b" ")[1] == b"/v1/records/..%2F..%2Fx%3Fy%3D1%23z%0D%0AX%3A%20y"


def test_submitting_goes_on_until_the_record_is_final() -> None:
    waiting = answer(b"202 Accepted", b'{"id":"almr1x","state":"introduced","receipt":null}', b"Connection: close")
    final = answer(b"200 OK", b'{"id":"almr1x","state":"applied","receipt":"AAAA"}')
    with ask(waiting, None, waiting, final) as (scripted, opened):
        assert opened.submit(b"record", 20).state == "applied"
        assert len({request.partition(b"\r\n\r\n")[2] for request in scripted.requests}) == 1
    with ask(*[waiting] * 50) as (_, opened):
        assert opened.submit(b"record", 0.3).state == "introduced"


def test_the_client_loads_no_server_and_starts_fast() -> None:
    program = (
        "import sys; import node.client; "
        "bad = {'litestar', 'hypercorn', 'httpx', 'trio', 'peewee', 'libp2p', 'node.storage'} & set(sys.modules); "
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
