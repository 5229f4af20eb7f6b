"""One request to a node over HTTP, with the standard library alone, so that a command starts fast.

Calls block. Several threads may use one caller: each call takes a connection of its own from a small pool. What a node
answers is not trusted here: it is decoded into the shape that is asked for, and bounded in size and time.

*Error handling.* `Unreachable` when the node does not answer, or says that it can't at the moment: nothing is lost,
the same call may be made again. `RecordRefused` when a rule forbids a record. `UserError` for the rest. Each in one
line. Whatever may be repeated without harm is repeated here, a few times.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Self, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from node import api
from node.connections import Connection, SocketConnection, make_secure_connection
from node.errors import RecordRefused, Unreachable, UserError
from node.terminal import make_printable
from protocol.errors import Reason

TIMEOUT_SECONDS = 15.0
"""For a connection, and for each silence in an answer."""

ANSWER_SECONDS_MAX = 120.0
BLOB_SECONDS_MAX = 900.0
"""For an answer as a whole: a node that drips does not hold a caller for ever."""

JSON_BYTES_MAX = 32 * 1024 * 1024
"""A page of history with 200 of the largest records is 7 MB."""

RETRY_PAUSES_SECONDS = (0.2, 0.8)
IDLE_SECONDS_MAX = 5.0
"""Nodes close a connection that was idle for 15 s; one that was idle for less may still be used."""

IDLE_CONNECTIONS_MAX = 8
_PIECE_BYTES = 256 * 1024
_DETAIL_CHARACTERS_MAX = 500

Shape = TypeVar("Shape")


class HttpCaller:
    """Calls one node, at an http:// or https:// address or at the path of its operator's socket."""

    def __init__(
        self,
        place: str | Path,
        timeout_seconds: float = TIMEOUT_SECONDS,
        *,
        json_bytes_max: int = JSON_BYTES_MAX,
        is_public_only: bool = False,
    ) -> None:
        """Nothing is sent yet. `is_public_only`: a stranger named the address. Raises: UserError when it is none."""
        self.place = os.fspath(place)
        self._timeout_seconds = timeout_seconds
        self._json_bytes_max = json_bytes_max
        self._is_public_only = is_public_only
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self._path_prefix = ""
        self._is_socket = isinstance(place, Path) or self.place.startswith("/")
        if self._is_socket:
            return
        try:
            address = urlsplit(self.place)
            self._host, self._port = address.hostname or "", address.port
        except ValueError:
            raise UserError(f"{self.place} is no address of a node: write http://HOST:PORT or https://HOST") from None
        if address.scheme not in ("http", "https") or not self._host or address.query or address.username:
            raise UserError(f"{self.place} is no address of a node: write http://HOST:PORT or https://HOST")
        self._is_secure = address.scheme == "https"
        self._path_prefix = address.path.rstrip("/")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the idle connections. The client may be used again."""
        with self._lock:
            connections, self._idle = self._idle, []
        for connection in connections:
            connection.close()

    @property
    def _name(self) -> str:
        return f"the node at {self.place}"

    def _read(self, shape: type[Shape], path: str, wait: int | None = None, **query: int | None) -> Shape:
        return decode(shape, self._call("GET", add_query(path, wait=wait, **query), wait=wait or 0)[1])

    def _find(self, shape: type[Shape], path: str, wait: int = 0) -> Shape | None:
        status, content = self._call("GET", add_query(path, wait=wait or None), wait=wait, is_missing_allowed=True)
        return None if status == 404 else decode(shape, content)

    def _call(
        self,
        method: str,
        path: str,
        content: bytes | None = None,
        *,
        wait: float = 0,
        may_repeat: bool = True,
        is_missing_allowed: bool = False,
        bytes_max: int | None = None,
        answer_seconds: float = ANSWER_SECONDS_MAX,
        content_type: str = api.OCTETS,
        take: Callable[[bytes], object] | None = None,
    ) -> tuple[int, bytes]:
        """One request, repeated where that does no harm; status and content of the answer (none when `take` takes it).

        Raises: UserError and its kinds.
        """
        headers = {"Accept": "application/json, application/octet-stream"}
        if content is not None:
            headers["Content-Type"] = content_type
        target = self._path_prefix + api.PREFIX + path
        for pause in (*(RETRY_PAUSES_SECONDS if may_repeat else ()), None):
            connection = self._take_connection(self._timeout_seconds + wait)
            try:
                connection.request(method, target, content, headers)
                response = connection.getresponse()
                until = time.monotonic() + wait + answer_seconds
                is_taken = take is not None and response.status < 300
                answer = self._receive(response, bytes_max or self._json_bytes_max, until, take if is_taken else None)
            except (OSError, HTTPException) as error:
                connection.close()
                if pause is None or not isinstance(error, (ConnectionResetError, BrokenPipeError)):
                    # RemoteDisconnected is a ConnectionResetError, too.
                    raise Unreachable(self._explain(error)) from error
            else:
                self._give_back(connection, response)
                if response.status not in (429, 503) or pause is None:
                    if response.status < 300 or (response.status == 404 and is_missing_allowed):
                        return response.status, answer
                    raise self._explain_problem(response.status, answer)
            time.sleep(pause)
        raise AssertionError("the last round returns or raises")

    def _take_connection(self, timeout_seconds: float) -> Connection:
        now = time.monotonic()
        with self._lock:
            while self._idle:
                connection = self._idle.pop()
                if now - connection.idle_since < IDLE_SECONDS_MAX and connection.sock is not None:
                    connection.sock.settimeout(timeout_seconds)
                    return connection
                connection.close()
        if self._is_socket:
            return SocketConnection(self.place, timeout_seconds)
        connection = (
            make_secure_connection(self._host, self._port, timeout_seconds)
            if self._is_secure
            else Connection(self._host, self._port, timeout=timeout_seconds)
        )
        connection.is_public_only = self._is_public_only
        return connection

    def _give_back(self, connection: Connection, response: HTTPResponse) -> None:
        connection.idle_since = time.monotonic()
        with self._lock:
            if not response.will_close and len(self._idle) < IDLE_CONNECTIONS_MAX:
                self._idle.append(connection)
                return
        connection.close()

    def _receive(
        self, response: HTTPResponse, bytes_max: int, deadline: float, take: Callable[[bytes], object] | None
    ) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while piece := response.read(_PIECE_BYTES):
            (take or pieces.append)(piece)
            size += len(piece)
            if size > bytes_max:
                raise HTTPException(f"its answer is larger than {bytes_max} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError
        return b"".join(pieces)

    def _explain(self, error: Exception) -> str:
        """Why there is no answer, and what to do."""
        remedy = "start it with `allmende node run`, or choose another with --node"
        if self._is_socket and isinstance(error, PermissionError):
            return f"{self.place} belongs to the node's operator: run this as the user that runs the node"
        if isinstance(error, (ConnectionRefusedError, FileNotFoundError)):
            return f"{self._name} does not answer: {remedy}"
        if isinstance(error, TimeoutError):
            return f"{self._name} does not answer in time: try again, or choose another with --node"
        if isinstance(error, socket.gaierror):
            return f"{self._name} can't be found: check the address and the network, or choose another with --node"
        reason = _make_line(getattr(error, "strerror", None) or str(error) or type(error).__name__)
        return f"{self._name} can't be reached ({reason}): try again, or choose another with --node"

    def _explain_problem(self, status: int, answer: bytes) -> UserError:
        """What the node says is wrong."""
        detail, reason = "", None
        try:
            problem = msgspec.json.decode(answer, type=api.Problem)
            detail, reason = _make_line(problem.detail), problem.reason
        except msgspec.DecodeError:
            pass
        if reason is not None and reason in Reason.__members__:
            return RecordRefused(Reason[reason], detail or reason.lower())
        if status in (429, 503):
            return Unreachable(f"{self._name} is busy ({detail or status}): try again in a moment")
        if status >= 500:
            return Unreachable(f"{self._name} failed ({status} {detail}): try again, or choose another with --node")
        if 300 <= status < 400:
            return UserError(f"{self._name} points elsewhere ({status}): use the address that it points to")
        return UserError(detail or f"{self._name} refuses the request ({status}): is it an Allmende node?")


def add_query(path: str, **query: int | str | None) -> str:
    given = {name: value for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def decode(shape: type[Shape], content: bytes) -> Shape:
    try:
        return msgspec.json.decode(content, type=shape)
    except msgspec.DecodeError as error:
        raise UserError(f"the node's answer can't be read ({error}): is it an Allmende node of this version?") from None


def _make_line(text: str) -> str:
    """Foreign text for a terminal: one line, printable, bounded."""
    return " ".join(make_printable(text).split())[:_DETAIL_CHARACTERS_MAX]
