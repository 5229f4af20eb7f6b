"""Directories as bytes, and hostile bytes as errors."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.bundles import (
    END,
    BundleLimits,
    _make_header,
    check_name,
    compute_digest,
    list_bundle,
    pack_bundle,
    pack_bundle_to,
    unpack_bundle,
)
from node.errors import UserError
from protocol.errors import InvalidInput

names = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=20).filter(
    lambda name: check_name(name) is None
)
files = st.tuples(st.binary(max_size=1200), st.booleans())
trees = st.recursive(
    st.dictionaries(names, files, max_size=4),
    lambda inner: st.dictionaries(names, st.one_of(files, inner), max_size=4),
    max_leaves=8,
)


def write_tree(directory: Path, tree: dict) -> None:
    directory.mkdir(exist_ok=True)
    for name, content in tree.items():
        if isinstance(content, dict):
            write_tree(directory / name, content)
        else:
            (directory / name).write_bytes(content[0])
            (directory / name).chmod(0o755 if content[1] else 0o640)


def read_tree(directory: Path) -> dict:
    return {
        path.name: read_tree(path) if path.is_dir() else (path.read_bytes(), bool(path.stat().st_mode & stat.S_IXUSR))
        for path in directory.iterdir()
    }


def make_bundle(*entries: tuple[str, bytes | None]) -> bytes:
    """A bundle by hand: paths as they are, None for a directory."""
    made = b""
    for path, content in entries:
        directory, body = content is None, content or b""
        header = _make_header(tuple(path.split("/")), is_directory=directory, is_executable=False, size=len(body))
        made += header + body + bytes(-len(body) % 512)
    return made + END


@given(trees)
def test_a_tree_comes_back_as_it_was_and_has_one_bundle(tree):
    with TemporaryDirectory() as place:
        first, second = Path(place, "first"), Path(place, "second")
        write_tree(first, tree)
        bundle = pack_bundle(first)
        unpack_bundle(bundle, second)
        assert read_tree(second) == tree
        assert pack_bundle(second) == bundle
        with tarfile.open(fileobj=io.BytesIO(bundle)) as archive:
            found = [member.name for member in archive.getmembers()]
        assert found == [entry.path for entry in list_bundle(bundle)]


def test_a_bundle_stays_the_same_for_ever(tmp_path):
    inputs = {"a.csv": (b"1,2\n", False), "b" * 120: (b"", False)}
    write_tree(tmp_path / "job", {"run.sh": (b"#!/bin/sh\n", True), "in": inputs})
    packed = pack_bundle_to(tmp_path / "job", sink := io.BytesIO())
    assert packed.digest == compute_digest(sink.getvalue()) == hashlib.sha256(sink.getvalue()).digest()
    assert packed.size == len(sink.getvalue())
    assert packed.entries == 4
    assert packed.digest.hex() == "8ef44d178ed0edda189a5ebd5bfa348e2be82a5ebcc6adf20b82ee6bc54858a0"


def test_long_paths_are_read_by_tar_too(tmp_path):
    deep = {"d" * 90: {"é" * 60: {"f" * 255: (b"x", False), "g" * 101: {}}}}
    write_tree(tmp_path / "job", deep)
    bundle = pack_bundle(tmp_path / "job")
    unpack_bundle(bundle, tmp_path / "out")
    assert read_tree(tmp_path / "out") == deep
    with tarfile.open(fileobj=io.BytesIO(bundle)) as archive:
        assert archive.getnames() == [entry.path for entry in list_bundle(bundle)]


@given(st.binary(max_size=2000))
def test_noise_is_no_bundle(noise):
    if noise != END:
        with pytest.raises(InvalidInput):
            list_bundle(noise)


SMALL = make_bundle(("a", None), ("a/" + "n" * 120, b"content"), ("b", b"x" * 600))


def test_the_small_example_is_a_bundle():
    assert [entry.path for entry in list_bundle(SMALL)] == ["a", "a/" + "n" * 120, "b"]


@given(st.integers(0, len(SMALL) - 1), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_is_the_bundle_of_another_tree(position, value):
    changed = bytearray(SMALL)
    changed[position] = value
    try:
        entries = list_bundle(bytes(changed))
    except InvalidInput:
        return
    with TemporaryDirectory() as place:
        unpack_bundle(bytes(changed), Path(place))
        assert pack_bundle(Path(place)) == changed
        assert len(entries) == 3


@given(st.integers(0, len(SMALL) - 1))
def test_a_cut_or_longer_bundle_is_refused(length):
    for wrong in (SMALL[:length], SMALL + SMALL[:length] + b"\0"):
        with pytest.raises(InvalidInput):
            list_bundle(wrong)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../above",
        "a/../b",
        "./a",
        "a//b",
        "..",
        "",
        "a\\..\\b",
        "line\nbreak",
        "nul\0l",
        "\x1b[31mred",
        "txt.\u202eexe",  # shown as exe.txt
        "zero\u200bwidth",
        "e\u0301",  # a second spelling of é
        "x" * 256,
        "/".join("d" * 33),
        "p/" * 520 + "q",
    ],
)
def test_paths_that_lead_elsewhere_or_deceive_are_refused(path, tmp_path):
    with pytest.raises(InvalidInput):
        unpack_bundle(make_bundle((path, b"x")), tmp_path / "out")
    with pytest.raises(InvalidInput):
        unpack_bundle(make_bundle(("p", None), (path, b"x")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "entries",
    [
        [("a", b"1"), ("a", b"2")],
        [("a", None), ("a", None)],
        [("a", b"1"), ("a", None)],
        [("b", b""), ("a", b"")],
        [("a/b", b"")],
        [("a", b""), ("a/b", b"")],
        [("a", None), ("a/b", b""), ("a", b"x")],
    ],
)
def test_repeated_unordered_and_homeless_entries_are_refused(entries):
    with pytest.raises(InvalidInput):
        list_bundle(make_bundle(*entries))


def make_member(kind: bytes, name: str = "evil", **values) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.mode = 0o644
    for field, value in values.items():
        setattr(member, field, value)
    return member


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(
    "member",
    [
        make_member(tarfile.SYMTYPE, linkname="/etc/passwd"),
        make_member(tarfile.LNKTYPE, linkname="/etc/passwd"),
        make_member(tarfile.CHRTYPE, devmajor=1, devminor=3),
        make_member(tarfile.BLKTYPE, devmajor=8),
        make_member(tarfile.FIFOTYPE),
        make_member(tarfile.REGTYPE, "/absolute"),
        make_member(tarfile.REGTYPE, "../above"),
        make_member(tarfile.REGTYPE, mode=0o4755),
        make_member(tarfile.REGTYPE, mode=0o666),
        make_member(tarfile.REGTYPE, uid=1000),
        make_member(tarfile.REGTYPE, mtime=1),
        make_member(tarfile.REGTYPE, uname="root"),
        make_member(tarfile.AREGTYPE),
        make_member(tarfile.CONTTYPE),
        make_member(tarfile.GNUTYPE_SPARSE),
    ],
    ids=lambda member: f"{member.type!r}-{member.name}-{member.mode:o}-{member.mtime}",
)
def test_members_of_other_archives_are_refused(member, form):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as archive:
        archive.addfile(member)
    archived = made.getvalue()[: archive.offset]
    with pytest.raises(InvalidInput):
        list_bundle(archived)
    with pytest.raises(InvalidInput):
        list_bundle(archived[:512] + END)


def test_sizes_that_lie_are_refused():
    huge = _make_header(("a",), is_directory=False, is_executable=False, size=8**11 - 1)
    directory = _make_header(("a",), is_directory=True, is_executable=False, size=512)
    for wrong in (huge + END, huge + b"x" * 512 + END, directory + bytes(512) + END):
        with pytest.raises(InvalidInput):
            list_bundle(wrong)
    padded = bytearray(make_bundle(("a", b"x")))
    padded[600] = 1
    with pytest.raises(InvalidInput):
        list_bundle(bytes(padded))


def test_limits_hold_on_both_sides(tmp_path):
    write_tree(tmp_path / "job", {"a": (b"x" * 2000, False), "b": {"c": {"d": (b"", False)}}})
    bundle = pack_bundle(tmp_path / "job")
    for limits in (
        BundleLimits(entries_max=3),
        BundleLimits(path_bytes_max=4),
        BundleLimits(depth_max=2),
        BundleLimits(total_bytes_max=len(bundle) - 1),
    ):
        with pytest.raises(InvalidInput):
            list_bundle(bundle, limits)
        with pytest.raises(UserError):
            pack_bundle(tmp_path / "job", limits)
    exact = BundleLimits(entries_max=4, path_bytes_max=5, depth_max=3, total_bytes_max=len(bundle))
    assert pack_bundle(tmp_path / "job", exact) == bundle
    assert len(list_bundle(bundle, exact)) == 4


def test_a_file_that_only_claims_to_be_huge_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(UserError, match="larger than"):
        pack_bundle(tmp_path)


@pytest.fixture
def mixed(tmp_path):
    """What a job may leave behind: a good file among links, pipes and unprintable names."""
    directory = tmp_path / "job"
    write_tree(directory, {"good": (b"1", False), "sub": {"also": (b"2", False)}})
    (directory / "link").symlink_to("/etc/passwd")
    (directory / "sub" / "out").symlink_to("/")
    os.mkfifo(directory / "pipe")
    os.close(os.open(os.fsencode(directory) + b"/\xff\xfe", os.O_CREAT | os.O_WRONLY))
    (directory / "new\nline").write_bytes(b"")
    return directory


def test_links_pipes_and_bad_names_are_an_error_for_a_person(mixed):
    with pytest.raises(UserError, match="cannot pack") as caught:
        pack_bundle(mixed)
    assert "\n" not in str(caught.value)


def test_links_pipes_and_bad_names_are_left_out_and_told_for_a_job(mixed, tmp_path):
    packed = pack_bundle_to(mixed, sink := io.BytesIO(), skip=True)
    assert sorted(packed.skipped) == sorted(["link", "sub/out", "pipe", "??", "new\nline"])
    unpack_bundle(sink.getvalue(), tmp_path / "out")
    assert read_tree(tmp_path / "out") == {"good": (b"1", False), "sub": {"also": (b"2", False)}}


def test_a_directory_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        unpack_bundle(SMALL, tmp_path)
    assert os.listdir(tmp_path) == ["mine"]


FILL = """
import resource, sys
from pathlib import Path
from node.bundles import unpack_bundle
from node.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    unpack_bundle(sys.stdin.buffer.read(), Path(sys.argv[1]))
except UserError as error:
    print(error)
"""


def test_when_there_is_no_room_for_a_file_all_that_was_written_is_removed(tmp_path):
    (tmp_path / "old").mkdir()
    for name in ("new", "old"):
        done = subprocess.run(
            [sys.executable, "-c", FILL, str(tmp_path / name)], input=SMALL, capture_output=True, check=True
        )
        assert done.stdout.decode() == f"cannot unpack into {tmp_path / name}: File too large\n"
    assert os.listdir(tmp_path) == ["old"]
    assert os.listdir(tmp_path / "old") == []


def test_what_the_system_refuses_is_one_line_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="cannot unpack"):
        unpack_bundle(SMALL, tmp_path / "missing" / "out")
    with pytest.raises(UserError, match="cannot pack"):
        pack_bundle(tmp_path / "missing")
    (tmp_path / "file").write_text("precious")
    for act in (pack_bundle, lambda place: unpack_bundle(SMALL, place)):
        with pytest.raises(UserError, match="Not a directory"):
            act(tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]
