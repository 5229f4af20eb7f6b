"""Looks a node over: for each check what was found, what is required, what for, and what to do when it fails.

Nothing is changed, but for one small file that is written and removed to see whether the disk keeps what it is given.
A check that needs what an earlier one missed is left out, so the first failure of the list is the one to mend.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sqlite3
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal

import msgspec

from node.config import Federation, NodeConfig, NodeHome, find_own_number, split_p2p_address
from node.errors import UserError
from node.keystore import Passphrase, load_key
from node.vote_keys import VoteKeyFiles, read_passphrase
from protocol.charter import Charter, Charters, Member

PYTHON_MIN = (3, 11)
DISK_FREE_BYTES_MIN = 1 << 30
FSYNC_SECONDS_MAX = 0.5
PEER_SECONDS = 3.0
CLOCK_SECONDS_MAX = 60
CLOCK_FILE_SECONDS_MAX = 300

State = Literal["ok", "failed", "warning"]
ReadClock = Callable[[str], float]
"""Unix time that the HTTP server at a URL tells."""


class Check(msgspec.Struct, frozen=True):
    """One finding. A warning does not stop a node from working."""

    name: str
    state: State
    actual: str
    required: str
    purpose: str
    remedy: str


def examine(home: NodeHome, passphrase: Passphrase, read_clock: ReadClock | None = None) -> Iterator[Check]:
    """All checks that can be made, the most basic first."""
    yield check_python()
    yield check_directory(home.path)
    if not home.path.is_dir():
        return
    yield check_disk_space(home.path)
    yield check_disk_keeps(home.path)
    later_vote_keys = sorted(home.vote_keys.glob("*.key"))
    first_vote_key = [home.vote_key] if home.vote_key.exists() or not later_vote_keys else []
    yield from map(check_key_file, (home.member_key, *first_vote_key, *later_vote_keys, home.peer_key))
    yield (settings := check_settings(home))
    if settings.state == "failed":
        return
    config = home.load_config()
    is_running = is_node_running(home.path)
    yield from check_ports(config, is_running)
    yield from check_membership(home, config, passphrase, is_running, read_clock)


def check_python() -> Check:
    """The interpreter, with its assertions on."""
    version = ".".join(map(str, sys.version_info[:3]))
    return _judge(
        "python",
        sys.version_info >= PYTHON_MIN and __debug__,
        version if __debug__ else f"{version}, assertions off",
        f"{PYTHON_MIN[0]}.{PYTHON_MIN[1]} or newer, without -O",
        "assertions stop the node before it keeps a wrong balance",
        "run it by a newer Python, and unset PYTHONOPTIMIZE",
    )


def check_directory(path: Path) -> Check:
    """The home is there, and nobody else can look into it."""
    try:
        status = path.stat()
    except OSError as error:
        actual, is_good = error.strerror or "missing", False
    else:
        actual = f"mode {stat.S_IMODE(status.st_mode):04o}, owner {status.st_uid}"
        is_good = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077 and status.st_uid == os.geteuid()
    return _judge(
        "home directory",
        is_good,
        actual,
        f"a directory of mode 0700 that user {os.geteuid()} owns",
        "keys and the post of others lie in it",
        f"make it with `allmende node init`, or run `chmod 700 {path}` as its owner",
    )


def check_disk_space(path: Path) -> Check:
    """Room for the ledger to grow."""
    free = shutil.disk_usage(path).free
    return _judge(
        "disk space",
        free >= DISK_FREE_BYTES_MIN,
        f"{free / 2**30:.1f} GiB free",
        f"{DISK_FREE_BYTES_MIN / 2**30:.0f} GiB free",
        "a node that can't store a batch stops",
        "free some space, or move the home to a larger disk",
        is_warning=free > DISK_FREE_BYTES_MIN // 10,
    )


def check_disk_keeps(path: Path) -> Check:
    """Write a file, force it to disk, read it again."""
    trial = path / f".doctor.{secrets.token_hex(8)}"
    content = secrets.token_bytes(4096)
    started = time.perf_counter()
    try:
        with open(trial, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        seconds = time.perf_counter() - started
        actual, is_good = f"fsync takes {1000 * seconds:.1f} ms", trial.read_bytes() == content
        is_good = is_good and seconds <= FSYNC_SECONDS_MAX
        is_warning = is_good or seconds > FSYNC_SECONDS_MAX
    except OSError as error:
        actual, is_good, is_warning = error.strerror or str(error), False, False
    finally:
        with suppress(OSError):
            trial.unlink()
    return _judge(
        "disk writes",
        is_good,
        actual,
        f"fsync works, within {1000 * FSYNC_SECONDS_MAX:.0f} ms",
        "every batch is on disk before anybody sees it",
        "put the home on a local disk that is not failing",
        is_warning=is_warning,
    )


def check_key_file(path: Path) -> Check:
    """A secret key, for its owner only."""
    try:
        status = path.stat()
        actual = f"mode {stat.S_IMODE(status.st_mode):04o}"
        is_good = stat.S_ISREG(status.st_mode) and not status.st_mode & 0o077
    except OSError as error:
        actual, is_good = error.strerror or "missing", False
    return _judge(
        path.name,
        is_good,
        actual,
        "a plain file of mode 0600",
        "whoever reads it can sign as this member",
        f"run `chmod 600 {path}`, or restore it from its backup",
    )


def check_settings(home: NodeHome) -> Check:
    """config.toml can be read."""
    try:
        home.load_config()
        actual, is_good = "valid", True
    except UserError as error:
        actual, is_good = str(error), False
    return _judge(
        "settings",
        is_good,
        actual,
        "a valid config.toml",
        "they say where the node listens",
        f"correct {home.config}",
    )


def is_node_running(path: Path) -> bool:
    """Whether a process holds the lock of this home. It is only looked at, so a node that starts is not hindered."""
    try:
        status = os.stat(path / ".lock")
        locks = Path("/proc/locks").read_text()
    except OSError:
        return False
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    return any(place in line.split() and "FLOCK" in line for line in locks.splitlines())


def check_ports(config: NodeConfig, is_running: bool) -> Iterator[Check]:
    """Both ports can be bound, or this node has bound them."""
    for name, (host, port) in (("p2p port", split_p2p_address(config.p2p)), ("http port", config.split_http())):
        reason = _try_to_bind(host, port)
        if is_running:
            is_good, actual = reason is not None, "in use by this node" if reason else "free, though the node runs"
        else:
            is_good, actual = reason is None, reason or "free"
        yield _judge(
            name,
            is_good,
            f"{host}:{port} {actual}",
            "in use by this node" if is_running else "free",
            "members call the first, people the second",
            "stop the other program, or choose another port in config.toml and restart",
        )


def _try_to_bind(host: str, port: int) -> str | None:
    """None when the port is free, else why it is not. Without SO_REUSEPORT, which would hide another listener."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        return f"can't be bound ({error.strerror})"
    return None


def check_membership(
    home: NodeHome, config: NodeConfig, passphrase: Passphrase, is_running: bool, read_clock: ReadClock | None
) -> Iterator[Check]:
    """The federation file, our place in it, the clock, the ledger, the other members."""
    required = "a valid federation.json whose newest charter names this node's three keys"
    purpose = "the node signs as a member of one federation"
    try:
        federation, _ = home.load_federation()
        charters = federation.decode_charters()
        charter = charters[max(charters)]
        own = _find_own(home, charters, passphrase)
    except UserError as error:
        remedy = "found a federation with `allmende charter`, start once with --federation FILE, or with --join"
        yield _judge("membership", False, str(error), required, purpose, remedy)
        return
    actual = f"member {own.number}, {own.name}, of {charter.fields.name}"
    yield _judge("membership", own.name == config.name, actual, required, purpose, f"set name = {own.name!r}")
    yield check_epoch(charter)
    yield check_ledger(home, charter.federation, is_running)
    yield from check_peers(federation, charter, own)
    for url in _list_urls(config, read_clock):
        assert read_clock is not None
        yield check_clock(url, read_clock)


def _find_own(home: NodeHome, charters: Charters, passphrase: Passphrase) -> Member:
    """We in the newest charter. Raises: UserError when it does not name us, or a key that is not here."""
    text = read_passphrase(home.member_key, passphrase)
    member_key = load_key(home.member_key, text, purpose="member").public_key
    peer_key = load_key(home.peer_key, text, purpose="peer").public_key
    number = find_own_number((charters[version] for version in sorted(charters, reverse=True)), member_key, peer_key)
    version = max(charters)
    own = charters[version].members.get(number)
    if own is None:
        raise UserError(f"version {version} of the charter does not name this institution any more")
    held = VoteKeyFiles(home.vote_key, home.vote_keys, text).find(own.vote_key)
    named = (("member", member_key == own.member_key), ("peer", peer_key == own.peer_key), ("vote", held is not None))
    for purpose, is_here in named:
        if not is_here:
            raise UserError(f"version {version} of the charter names another {purpose} key than those in {home.path}")
    return own


def _list_urls(config: NodeConfig, read_clock: ReadClock | None) -> list[str]:
    return [config.url] if config.url and read_clock is not None else []


def check_epoch(charter: Charter) -> Check:
    """The clock lies in an epoch of the charter."""
    now = time.time()
    epoch = charter.compute_epoch(int(now))
    caps = max(len(member.issuance_caps) for member in charter.members.values())
    is_early = now + CLOCK_FILE_SECONDS_MAX < charter.fields.genesis_seconds
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    return _judge(
        "clock",
        not is_early and epoch <= caps,
        f"{when}, " + ("before the charter's first epoch" if is_early else f"epoch {epoch}"),
        f"within the charter's epochs 1 to {caps}",
        "a record is voted for only in its own epoch",
        "set the clock by NTP (`timedatectl set-ntp true`); when the epochs are over, found anew",
    )


def check_clock(url: str, read_clock: ReadClock) -> Check:
    """Our clock against that of a server."""
    try:
        offset = time.time() - read_clock(url)
        actual, is_good = f"{offset:+.0f} s from {url}", abs(offset) <= CLOCK_SECONDS_MAX
    except UserError as error:
        actual, is_good = str(error), False
    return _judge(
        "url and clock",
        is_good,
        actual,
        f"answers, and within {CLOCK_SECONDS_MAX} s",
        "others reach the HTTP API at this address, and epochs turn by the clock",
        "check the proxy and the firewall, and set the clock by NTP",
        is_warning=True,
    )


def check_ledger(home: NodeHome, federation: bytes, is_running: bool) -> Check:
    """The database opens, is sound and of this federation."""
    from node.storage.migrations import STEPS
    from node.storage.store import Store

    name, required = "ledger", f"a sound database of this federation, version {len(STEPS)} or older"
    if is_running:
        return _judge(name, True, "open in the running node", required, "it holds everything", "")
    if not home.ledger.exists():
        return _judge(name, True, "none yet: the first start makes it", required, "it holds everything", "")
    try:
        version = _read_ledger_version(home.ledger)
        if version > len(STEPS):
            raise UserError(f"version {version}, written by a newer allmende")
        if version == len(STEPS):  # opening an older one would bring it to today's form, and nothing is changed here
            store = Store.open(home.ledger, federation)
            count = store.count_batches()
            store.close()
            actual = f"version {version}, {count} batches"
        else:
            actual = f"version {version}: the next start brings it to {len(STEPS)}"
        is_good = True
    except (UserError, sqlite3.Error) as error:
        actual, is_good = str(error), False
    remedy = "update allmende, or move ledger.sqlite away: the node fetches it from the others at its next start"
    return _judge(name, is_good, actual, required, "it holds everything", remedy)


def _read_ledger_version(path: Path) -> int:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT max(version) FROM schema_version").fetchone()[0])


def check_peers(federation: Federation, charter: Charter, own: Member) -> Iterator[Check]:
    """Each other member's node answers a call over TCP; a node works while a quorum does."""
    weight = own.weight
    for member in charter.members.values():
        if member.number == own.number:
            continue
        address = federation.addresses.get(member.name, "")
        reason = _try_to_call(address)
        weight += member.weight if reason is None or not address else 0  # whose address nobody told may call us
        yield _judge(
            f"peer {member.name}",
            reason is None,
            f"{address or 'no address'}: {reason or 'answers'}",
            "answers over TCP",
            f"records need members of weight {charter.quorum} of {charter.total_weight}",
            "ask that member whether its node runs; check the firewalls; a new address goes into peers of config.toml",
            is_warning=True,
        )
    yield _judge(
        "quorum",
        weight >= charter.quorum,
        f"members of weight {weight} answer",
        f"weight {charter.quorum} of {charter.total_weight}",
        "payments become final; without it they wait",
        "see the peers above: bring enough of their nodes back",
    )


def _try_to_call(address: str) -> str | None:
    try:
        host, port = split_p2p_address(address)
        socket.create_connection((host, port), timeout=PEER_SECONDS).close()
    except AssertionError:
        return "is no network address"
    except OSError as error:
        return error.strerror or str(error)
    return None


def _judge(
    name: str, is_good: bool, actual: str, required: str, purpose: str, remedy: str, *, is_warning: bool = False
) -> Check:
    state: State = "ok" if is_good else "warning" if is_warning else "failed"
    return Check(name, state, actual, required, purpose, "" if is_good else remedy)
