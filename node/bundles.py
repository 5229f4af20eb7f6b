"""A directory as one string of bytes: what goes into a job and what comes out, named by its digest.

A bundle is a plain tar file (POSIX ustar, with a pax header where a path is longer than 100 bytes), so any
`tar` lists it. It holds directories and regular files with their executable bit, nothing else: no times, no
owners, no links. Each directory has exactly one bundle and each bundle is read in exactly one way: the reader
takes path, kind and size from a header, writes the header anew and compares. Whatever a hostile archive
tries, it differs from that. Nothing is compressed: no bundle unpacks to more than its own size, and its
digest depends on no compressor's version.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

from node.errors import UserError
from protocol.errors import InvalidInput

BLOCK = 512
NAME_BYTES = 100  # the name in a header; a longer path goes into a pax header before it
PART_BYTES_MAX = 255  # one part of a path, on every usual file system
READ_BYTES = 1 << 20
FILE_BYTES_END = 8**11  # 8 GiB
END = bytes(2 * BLOCK)
DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# Control, format (such as a change of the direction of writing), surrogate, private, separators of lines.
FORBIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


@dataclass(frozen=True)
class BundleLimits:
    """The largest bundle that is packed or unpacked."""

    entries_max: int = 20_000
    path_bytes_max: int = 1024
    depth_max: int = 32
    total_bytes_max: int = 4 << 30

    def __post_init__(self) -> None:
        assert self.total_bytes_max < FILE_BYTES_END, "a header has eleven octal digits for a size"


class Entry(NamedTuple):
    """A file or directory of a bundle; `offset` is where its content starts in the bundle."""

    parts: tuple[str, ...]
    is_directory: bool
    is_executable: bool
    size: int
    offset: int = 0

    @property
    def path(self) -> str:
        return "/".join(self.parts)


@dataclass
class Packed:
    """What was packed: the SHA-256 and length of the bundle, and the paths left out of it."""

    digest: bytes = b""
    size: int = 0
    entries: int = 0
    skipped: list[str] = field(default_factory=list)


DEFAULT_LIMITS = BundleLimits()


def compute_digest(content: bytes | memoryview) -> bytes:
    """The name of a bundle: SHA-256 of its bytes."""
    return hashlib.sha256(content).digest()


def check_name(name: str) -> str | None:
    """What is wrong with one part of a path, in a few words, or None. The same rule holds on both sides.

    One spelling per name (NFC), and nothing that a terminal shows as something else than it is.
    """
    if name in {"", ".", ".."} or "/" in name or "\\" in name:
        return "the name is not a plain one"
    if any(unicodedata.category(character) in FORBIDDEN_CATEGORIES for character in name):
        return "the name has characters that cannot be seen"
    if unicodedata.normalize("NFC", name) != name:
        return "the name is not in the usual spelling of Unicode (NFC)"
    if len(name.encode()) > PART_BYTES_MAX:
        return "the name is too long"
    return None


# Packing.


def pack_bundle(directory: Path, limits: BundleLimits = DEFAULT_LIMITS, *, skip: bool = False) -> bytes:
    """The bundle of a directory. See `pack_bundle_to`."""
    sink = BytesIO()
    pack_bundle_to(directory, sink, limits, skip=skip)
    return sink.getvalue()


def pack_bundle_to(
    directory: Path, sink: BinaryIO, limits: BundleLimits = DEFAULT_LIMITS, *, skip: bool = False
) -> Packed:
    """Write the bundle of a directory to `sink`. No link is followed, also not one that appears meanwhile.

    With `skip` links, devices and impossible names are left out and told (what a job leaves behind should not
    be lost for one of them); without it they are an error (what a person hands in should be what arrives).

    Raises: UserError, in one line, when a limit is passed or something cannot be read.
    """
    packer = _Packer(sink, limits, skip)
    try:
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            packer.pack_directory(root, ())
        finally:
            os.close(root)
        packer.write(END)
    except OSError as error:
        raise UserError(f"cannot pack {error.filename or directory}: {error.strerror}") from error
    packer.packed.digest = packer.digest.digest()
    return packer.packed


class _Packer:
    """Walks a directory depth first, each level in the order of the bytes of its names."""

    def __init__(self, sink: BinaryIO, limits: BundleLimits, skip: bool) -> None:
        self.sink, self.limits, self.skip = sink, limits, skip
        self.digest = hashlib.sha256()
        self.packed = Packed()
        self.seen = 0

    def write(self, content: bytes) -> None:
        self.packed.size += len(content)
        if self.packed.size > self.limits.total_bytes_max:
            raise UserError(f"the directory is larger than {self.limits.total_bytes_max} bytes")
        self.digest.update(content)
        self.sink.write(content)

    def pack_directory(self, descriptor: int, parts: tuple[str, ...]) -> None:
        names = []
        with os.scandir(descriptor) as listing:
            for found in listing:
                # Counted while listing: a job may leave more names than fit in memory.
                self.seen += 1
                if self.seen > self.limits.entries_max:
                    raise UserError(f"the directory has more than {self.limits.entries_max} files")
                names.append(os.fsencode(found.name))
        for name in sorted(names):
            self.pack_entry(descriptor, os.fsdecode(name), parts)

    def pack_entry(self, parent: int, name: str, parents: tuple[str, ...]) -> None:
        parts = (*parents, name)
        shown = "/".join(parts).encode("utf-8", "replace").decode()
        trouble = check_name(name) or self.check_length(parts)
        descriptor = -1
        if trouble is None:
            try:
                descriptor = self.open_entry(parent, name)
            except OSError as error:
                # A job may have left files that even their owner may not read.
                trouble = error.strerror or "it cannot be opened"
        if trouble is not None:
            if not self.skip:
                raise UserError(f"cannot pack {shown!r}: {trouble}")
            self.packed.skipped.append(shown)
            return
        try:
            self.packed.entries += 1
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                self.write(_make_header(parts, is_directory=True, is_executable=False, size=0))
                self.pack_directory(descriptor, parts)
            else:
                self.pack_file(descriptor, parts)
        finally:
            os.close(descriptor)

    def open_entry(self, parent: int, name: str) -> int:
        """A descriptor of a regular file or directory.

        Looked at first, because opening a device can have effects; opened without following links or waiting
        for the other end of a pipe, because it may be something else by then.
        """
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            raise OSError(0, "it is neither a file nor a directory")
        flags = DIRECTORY_FLAGS if stat.S_ISDIR(mode) else os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        return os.open(name, flags, dir_fd=parent)

    def check_length(self, parts: tuple[str, ...]) -> str | None:
        if len(parts) > self.limits.depth_max:
            return f"it lies more than {self.limits.depth_max} directories deep"
        if len("/".join(parts).encode()) > self.limits.path_bytes_max:
            return f"its path is longer than {self.limits.path_bytes_max} bytes"
        return None

    def pack_file(self, descriptor: int, parts: tuple[str, ...]) -> None:
        status = os.fstat(descriptor)
        changed = UserError(f"{'/'.join(parts)!r} changed while it was packed: pack again")
        if not stat.S_ISREG(status.st_mode):
            raise changed
        missing = status.st_size
        if self.packed.size + missing > self.limits.total_bytes_max:
            raise UserError(f"the directory is larger than {self.limits.total_bytes_max} bytes")
        executable = bool(status.st_mode & stat.S_IXUSR)
        self.write(_make_header(parts, is_directory=False, is_executable=executable, size=missing))
        while missing:
            content = os.read(descriptor, min(missing, READ_BYTES))
            if not content:
                raise changed
            self.write(content)
            missing -= len(content)
        self.write(bytes(-status.st_size % BLOCK))


# The one form of a header.


def _make_header(parts: tuple[str, ...], *, is_directory: bool, is_executable: bool, size: int) -> bytes:
    """The block before an entry's content; three blocks or more where its path needs a pax header."""
    path = "/".join(parts).encode() + (b"/" if is_directory else b"")
    kind, mode = (b"5", 0o755) if is_directory else (b"0", 0o755 if is_executable else 0o644)
    block = _make_block(path[:NAME_BYTES], kind, mode, size)
    if len(path) <= NAME_BYTES:
        return block
    record = _make_pax_record(path)
    return _make_block(b"@long-path", b"x", 0o644, len(record)) + record + bytes(-len(record) % BLOCK) + block


def _make_pax_record(path: bytes) -> bytes:
    """`LENGTH path=...`, where the length counts its own digits too."""
    rest = b" path=" + path + b"\n"
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length += 1
    return str(length).encode() + rest


def _make_block(name: bytes, kind: bytes, mode: int, size: int) -> bytes:
    none = b"%07o\0" % 0  # owner, group, device numbers
    head = name.ljust(NAME_BYTES, b"\0") + b"%07o\0" % mode + none + none + _octal(size) + _octal(0)
    tail = kind + bytes(100) + b"ustar\x0000" + bytes(32 + 32) + none + none + bytes(155 + 12)
    checksum = sum(head) + sum(tail) + 8 * ord(" ")
    return head + b"%06o\0 " % checksum + tail


def _octal(number: int) -> bytes:
    assert number < FILE_BYTES_END
    return b"%011o\0" % number


# Reading.


def list_bundle(content: bytes | memoryview, limits: BundleLimits = DEFAULT_LIMITS) -> list[Entry]:
    """The entries of a bundle, in their order. What this accepts is what `pack_bundle` makes, byte for byte.

    Invariants of the result: paths ascend strictly, so none is there twice; the directory of each entry
    stands before it, as a directory; every part of every path passes `check_name`.

    Raises: InvalidInput for anything else.
    """
    view = memoryview(content)
    if len(view) > limits.total_bytes_max:
        raise InvalidInput("the bundle is larger than allowed")
    entries = []
    directories: set[tuple[str, ...]] = {()}
    previous: list[bytes] = []
    for entry in _read_entries(view, limits):
        key = [part.encode() for part in entry.parts]
        if key <= previous:
            raise InvalidInput("the paths of the bundle are not in order")
        if entry.parts[:-1] not in directories:
            raise InvalidInput("an entry of the bundle lies in no directory of it")
        if entry.is_directory:
            directories.add(entry.parts)
        entries.append(entry)
        if len(entries) > limits.entries_max:
            raise InvalidInput("the bundle has more entries than allowed")
        previous = key
    return entries


def _read_entries(view: memoryview, limits: BundleLimits) -> Iterator[Entry]:
    position = 0
    while view[position : position + BLOCK] != END[:BLOCK]:
        start = position
        block = bytes(view[position : position + BLOCK])
        if len(block) < BLOCK:
            raise InvalidInput("the bundle ends too early")
        path = block[:NAME_BYTES].rstrip(b"\0")
        if block[156:157] == b"x":
            record_bytes = _read_size(block)
            # The length, the word path, the slash of a directory, the end of the line.
            if record_bytes > limits.path_bytes_max + 16:
                raise InvalidInput("a path of the bundle is too long")
            position += BLOCK
            path = bytes(view[position : position + record_bytes]).partition(b" path=")[2][:-1]
            position += record_bytes + -record_bytes % BLOCK
            block = bytes(view[position : position + BLOCK])
        position += BLOCK
        is_directory, size = block[156:157] == b"5", _read_size(block)
        is_executable = not is_directory and b"755" in block[100:108]
        entry = Entry(_read_path(path, is_directory, limits), is_directory, is_executable, size, position)
        expected = _make_header(entry.parts, is_directory=is_directory, is_executable=is_executable, size=size)
        if view[start:position] != expected or (is_directory and size):
            raise InvalidInput("an entry of the bundle is not in the one form")
        position += size
        padding = view[position : position + -size % BLOCK]
        if position > len(view) or any(padding):
            raise InvalidInput("an entry of the bundle is cut short or badly padded")
        position += -size % BLOCK
        yield entry
    if view[position:] != END:
        raise InvalidInput("the bundle does not end as it should")


def _read_size(block: bytes) -> int:
    """A size in octal. Whether it was in the one form is decided by writing the header anew."""
    digits = block[124:135]
    if not re.fullmatch(rb"[0-7]{11}", digits):
        raise InvalidInput("an entry of the bundle has no size")
    return int(digits, 8)


def _read_path(path: bytes, is_directory: bool, limits: BundleLimits) -> tuple[str, ...]:
    try:
        text = path.removesuffix(b"/").decode() if is_directory else path.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput("a path of the bundle is not text") from error
    parts = tuple(text.split("/"))
    if len(parts) > limits.depth_max or len(text.encode()) > limits.path_bytes_max:
        raise InvalidInput("a path of the bundle is too long")
    for part in parts:
        if (trouble := check_name(part)) is not None:
            raise InvalidInput(f"a path of the bundle is refused: {trouble}")
    return parts


def unpack_bundle(content: bytes | memoryview, directory: Path, limits: BundleLimits = DEFAULT_LIMITS) -> list[Entry]:
    """Write a bundle's files into a directory that is empty or does not exist yet.

    The whole bundle is checked before the first file is written. Files are made new (O_EXCL), below
    directories that were made here and are opened without following links, so nothing outside is touched and
    nothing is overwritten. When the system fails in between (disk full), what was written is removed again.

    Raises: InvalidInput when it is no bundle; UserError when the directory is not empty or cannot be written.
    """
    view = memoryview(content)
    entries = list_bundle(view, limits)
    made = False
    try:
        with suppress(FileExistsError):
            directory.mkdir()
            made = True
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(root) as listing:
                if next(listing, None) is not None:
                    raise UserError(f"{directory} is not empty: unpack into a new directory")
            try:
                _write_entries(view, entries, root)
            except BaseException:
                _remove_entries(entries, root)
                raise
        finally:
            os.close(root)
    except OSError as error:
        if made:
            with suppress(OSError):
                directory.rmdir()
        raise UserError(f"cannot unpack into {directory}: {error.strerror}") from error
    return entries


def _write_entries(view: memoryview, entries: list[Entry], root: int) -> None:
    for entry in entries:
        parent = _open_directory(root, entry.parts[:-1])
        try:
            if entry.is_directory:
                os.mkdir(entry.parts[-1], 0o755, dir_fd=parent)
                continue
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            mode = 0o755 if entry.is_executable else 0o644
            with open(os.open(entry.parts[-1], flags, mode, dir_fd=parent), "wb", buffering=0) as file:
                position, end = entry.offset, entry.offset + entry.size
                while position < end:
                    position += file.write(view[position : min(end, position + READ_BYTES)]) or 0
        finally:
            os.close(parent)


def _remove_entries(entries: list[Entry], root: int) -> None:
    """Undo `_write_entries`, however far it came: the directory was empty before."""
    for entry in reversed(entries):
        with suppress(OSError):
            parent = _open_directory(root, entry.parts[:-1])
            try:
                if entry.is_directory:
                    os.rmdir(entry.parts[-1], dir_fd=parent)
                else:
                    os.unlink(entry.parts[-1], dir_fd=parent)
            finally:
                os.close(parent)


def _open_directory(root: int, parts: tuple[str, ...]) -> int:
    """A descriptor of a directory below `root`, reached one step at a time and through no link."""
    descriptor = os.dup(root)
    for part in parts:
        try:
            following = os.open(part, DIRECTORY_FLAGS, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = following
    return descriptor
