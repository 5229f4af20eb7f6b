"""Delays and drops packets of one network namespace: what `tc netem` does, on kernels that lack it.

    python delaying.py QUEUE DELAY_MS JITTER_MS LOSS_PERMILLE SEED

The kernel hands each packet's number over (iptables: `-j NFQUEUE --queue-num QUEUE`) and waits for a verdict. Speaks
netlink's queue protocol (linux/netfilter/nfnetlink_queue.h) with the standard library alone. Prints `ready`, then runs
until it is ended; packets that wait then are lost. Started by path, so that it imports nothing of the project.
"""

from __future__ import annotations

import heapq
import random
import select
import socket
import struct
import sys
import time

NETLINK_NETFILTER = 12
_QUEUE_SUBSYSTEM = 3
_PACKET, _VERDICT, _CONFIG = 0, 1, 2
_REQUEST = 1
_BIND = 1
_COPY_NOTHING_BUT_HEADERS = 1
_DROP, _ACCEPT = 0, 1
QUEUED_PACKETS_MAX = 20_000
BUFFER_BYTES = 8 * 1024 * 1024


def _attribute(kind: int, content: bytes) -> bytes:
    padding = bytes(-len(content) % 4)
    return struct.pack("=HH", 4 + len(content), kind) + content + padding


def _message(kind: int, queue: int, *attributes: bytes) -> bytes:
    body = struct.pack("!BBH", socket.AF_UNSPEC, 0, queue) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), _QUEUE_SUBSYSTEM << 8 | kind, _REQUEST, 0, 0) + body


def open_queue(queue: int) -> socket.socket:
    """A netlink socket to which the kernel hands the packets of this queue. Raises: OSError without the right to."""
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    opened.bind((0, 0))
    # _CFG_CMD, _CFG_PARAMS and _CFG_QUEUE_MAXLEN
    opened.send(_message(_CONFIG, queue, _attribute(1, struct.pack("!BBH", _BIND, 0, socket.AF_INET))))
    opened.send(_message(_CONFIG, queue, _attribute(2, struct.pack("!IB", 0, _COPY_NOTHING_BUT_HEADERS))))
    opened.send(_message(_CONFIG, queue, _attribute(3, struct.pack("!I", QUEUED_PACKETS_MAX))))
    return opened


def decide(opened: socket.socket, queue: int, packet: int, verdict: int) -> None:
    """Let the kernel deliver a packet, or not."""
    opened.send(_message(_VERDICT, queue, _attribute(2, struct.pack("!II", verdict, packet))))


def list_packets(received: bytes) -> list[int]:
    """The numbers of the packets that a netlink message announces. Raises: OSError that the kernel reports."""
    packets = []
    while len(received) >= 16:
        length, kind = struct.unpack_from("=IH", received)
        if kind == 2:  # NLMSG_ERROR
            (error,) = struct.unpack_from("=i", received, 16)
            if error:
                raise OSError(-error, "the kernel refused the queue")
        elif kind == _QUEUE_SUBSYSTEM << 8 | _PACKET:
            packets += _list_numbers(received[20:length])
        received = received[(length + 3) & ~3 :]
    return packets


def _list_numbers(attributes: bytes) -> list[int]:
    numbers = []
    while len(attributes) >= 4:
        length, kind = struct.unpack_from("=HH", attributes)
        if kind & 0x3FFF == 1:  # NFQA_PACKET_HDR: the number stands first
            numbers += struct.unpack_from("!I", attributes, 4)
        attributes = attributes[(length + 3) & ~3 :]
    return numbers


def main(queue: int, delay_ms: int, jitter_ms: int, loss_permille: int, seed: int) -> None:
    """Delay and drop for ever."""
    chance = random.Random(seed)
    waiting: list[tuple[float, int, int]] = []
    arrived = 0
    with open_queue(queue) as opened:
        print("ready", flush=True)
        while True:
            pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
            if select.select([opened], [], [], pause)[0]:
                for packet in list_packets(opened.recv(1 << 20)):
                    if chance.randrange(1000) < loss_permille:
                        decide(opened, queue, packet, _DROP)
                        continue
                    due = time.monotonic() + (delay_ms + chance.uniform(-jitter_ms, jitter_ms)) / 1000
                    arrived += 1
                    heapq.heappush(waiting, (due, arrived, packet))
            while waiting and waiting[0][0] <= time.monotonic():
                decide(opened, queue, heapq.heappop(waiting)[2], _ACCEPT)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:6]))
