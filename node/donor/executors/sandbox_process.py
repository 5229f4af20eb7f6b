"""One started sandbox, from outside: its gate, its first process, its output, and its end.

All that depends on Linux process handling is here; what a job is and may do is not.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterable

import trio

from node.donor.executors.executor import JobNotStarted
from node.donor.executors.launch import READY, SMALL_FILE_SYSTEMS

_START_SECONDS_MAX = 30.0  # a busy machine needs far less than one
_READ_BYTES = 1 << 16
_MESSAGE_BYTES_MAX = 2000
_FILE_BYTES = 1024  # what the kernel keeps for one file in memory, at least, be it empty
_FIRST = "1"  # bubblewrap itself, inside
_STILL_STATES = "TZX"  # stopped, dead, gone: states of a thread that can't do anything


def open_memory_file(name: str, content: bytes) -> int:
    """A file that exists only in memory, to hand to another program; its position is at the start."""
    descriptor = os.memfd_create(name)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


class SandboxProcess:
    """The outermost process of a sandbox and, once that is up, the first process inside (its `init`).

    Invariant: killing `init` ends every process inside, since the kernel ends a process table with its first
    process; and `init` counts as ended only after all others are gone.
    """

    def __init__(
        self,
        command_line: list[str],
        inherited: Iterable[int],
        information: tuple[int, int],
        door: socket.socket | None = None,
    ) -> None:
        """Starts the program. `information` is a pipe; bubblewrap gets its second end, which is closed here. Over
        `door` comes, before the gate is ready, a socket that listens in the job's network.

        This blocks the agent for about a millisecond, on purpose: the kernel ends bubblewrap when the
        *thread* that started it ends, and threads that trio lends for such calls end when they are idle.
        """
        self._popen = subprocess.Popen(
            command_line,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(*inherited, information[1]),
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
            start_new_session=True,
            bufsize=0,
        )
        os.close(information[1])
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._gate = self._popen.stdin
        self._output = trio.lowlevel.FdStream(os.dup(self._popen.stdout.fileno()))
        self._popen.stdout.close()
        self._information = trio.lowlevel.FdStream(information[0])
        self._handle = os.pidfd_open(self._popen.pid)
        self._door = door
        self._init: int | None = None
        self._init_handle: int | None = None
        self._table: int | None = None
        self._small: list[int] = []

    async def wait_ready(self) -> None:
        """Returns when the gate inside is waiting. Raises: JobNotStarted with what the programs said."""
        said = b""
        with trio.move_on_after(_START_SECONDS_MAX):
            while READY not in said:
                block = await self._output.receive_some(_READ_BYTES)
                if not block:
                    break
                said = (said + block)[-_MESSAGE_BYTES_MAX:]
        if READY not in said:
            words = " ".join(said.decode(errors="replace").split())
            raise JobNotStarted(f"the sandbox could not be set up: {words or 'no answer'}")
        text = b""
        while b"}" not in text:
            text += await self._information.receive_some(_READ_BYTES) or b"}"
        self._init = int(json.loads(text)["child-pid"])
        self._init_handle = os.pidfd_open(self._init)
        self._table = self.open_directory("/proc")
        self._small = [self.open_directory(path) for path in SMALL_FILE_SYSTEMS]

    def take_door(self) -> trio.socket.SocketType | None:
        """The socket that listens inside, if this sandbox has one; once. The other end of its way here is closed by
        now: nothing that the job does comes along it."""
        if self._door is None:
            return None
        with self._door:
            self._door.setblocking(False)
            _, received, _, _ = socket.recv_fds(self._door, 16, 1)
        return trio.socket.from_stdlib_socket(socket.socket(fileno=received[0]))

    def open_directory(self, path: str) -> int:
        """Opens a directory of the job's view of the file system. Raises: OSError."""
        assert self._init is not None
        return os.open(f"/proc/{self._init}/root{path}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def open_gate(self) -> None:
        """Lets the job run. Raises: JobNotStarted if it has gone meanwhile."""
        try:
            self._gate.write(b"go\n")
            self._gate.close()
        except BrokenPipeError:
            raise JobNotStarted("the sandbox ended before the job could start") from None

    async def read_output(self) -> bytes:
        """The next part of what the job prints; empty when nobody can print any more."""
        return bytes(await self._output.receive_some(_READ_BYTES))

    async def wait_end(self) -> None:
        """Returns when no process of the sandbox's table is left."""
        assert self._init_handle is not None
        await trio.lowlevel.wait_readable(self._init_handle)

    def kill(self) -> None:
        """Ends all processes inside. The one outside then ends by itself."""
        if self._init_handle is None:
            self._popen.kill()
            return
        try:
            signal.pidfd_send_signal(self._init_handle, signal.SIGKILL)
        except ProcessLookupError:
            return

    async def end(self) -> int:
        """Ends everything, waits for it, and gives bubblewrap's exit status. May be repeated."""
        if self._popen.returncode is None:
            if not self._gate.closed:
                self._gate.close()
            self.kill()
            if self._init_handle is not None:
                await self.wait_end()
            await trio.lowlevel.wait_readable(self._handle)
            self._popen.wait()
            os.close(self._handle)
            if self._init_handle is not None:
                os.close(self._init_handle)
                self._init_handle = None
            await self._information.aclose()
        assert self._popen.returncode is not None
        return self._popen.returncode

    async def close(self) -> None:
        """Gives back what outlasts the end: nobody may use this any more."""
        if self._table is not None:
            os.close(self._table)
            self._table = None
        if self._door is not None:
            self._door.close()
        while self._small:
            os.close(self._small.pop())
        await self._output.aclose()

    def stop_all(self) -> bool:
        """Stops all processes inside but the first, which is ours; whether they stood still before, all of them.

        One pass may miss what is born meanwhile. Whoever needs certainty repeats it until it is true twice in a
        row: a process that was missed once has only those that can still run to be born of again.
        """
        return self._signal_all(signal.SIGSTOP, is_sparing_still=True)

    def continue_all(self) -> None:
        """Lets all go on, those too that the job had stopped itself."""
        self._signal_all(signal.SIGCONT, is_sparing_still=False)

    def _signal_all(self, number: signal.Signals, is_sparing_still: bool) -> bool:
        is_all_spared = True
        for name in self._list_inside():
            if name == _FIRST or (is_sparing_still and _is_still(self._table, name)):
                continue
            is_all_spared = False
            try:
                process = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._table)
            except OSError:  # it has gone
                continue
            try:
                signal.pidfd_send_signal(process, number)
            except ProcessLookupError:
                continue
            finally:
                os.close(process)
        return is_all_spared

    def _list_inside(self) -> list[str]:
        """The processes inside by the numbers that they have there. The job's own table of processes holds all of
        them, whoever their parents are."""
        if self._table is None:
            return []
        try:
            return _list_numbers(self._table, ".")
        except OSError:  # the first process has gone, and the table with it
            return []

    def measure_memory_bytes(self, enough_bytes: int) -> int:
        """Memory that the processes inside hold now, and what the kernel keeps of their files in memory.

        Pages that several share count for each, unless the sum would exceed `enough_bytes`: then they are
        divided up exactly, which takes the kernel longer.
        """
        names = self._list_inside()
        total = sum(_read_resident_bytes(self._table, name) for name in names)
        if total > enough_bytes:
            total = sum(_read_proportional_bytes(self._table, name) for name in names)
        return total + sum(_count_files(directory) for directory in self._small) * _FILE_BYTES


def _count_files(directory: int) -> int:
    status = os.fstatvfs(directory)
    return status.f_files - status.f_ffree


def _list_numbers(table: int | None, path: str) -> list[str]:
    """Processes or threads of a table. Opened for each listing: a second one at a time would share the place."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=table)
    try:
        return [name for name in os.listdir(directory) if name.isdigit()]
    finally:
        os.close(directory)


def _read_in_table(table: int | None, name: str) -> str:
    """A file below a table of processes; empty when the process has gone."""
    try:
        with open(name, encoding="utf-8", errors="replace", opener=lambda p, f: os.open(p, f, dir_fd=table)) as file:
            return file.read()
    except OSError:
        return ""


def _is_still(table: int | None, name: str) -> bool:
    """Whether none of a process's threads can do anything. The first of them may be dead while others run."""
    try:
        threads = _list_numbers(table, f"{name}/task")
    except OSError:
        return True
    # The program's name stands before the state, in brackets, and may hold anything.
    states = (_read_in_table(table, f"{name}/task/{thread}/stat").rpartition(")")[2][1:2] for thread in threads)
    return all(state in _STILL_STATES for state in states)


def _read_resident_bytes(table: int | None, name: str) -> int:
    fields = _read_in_table(table, f"{name}/statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if fields else 0


def _read_proportional_bytes(table: int | None, name: str) -> int:
    for line in _read_in_table(table, f"{name}/smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return _read_resident_bytes(table, name)
