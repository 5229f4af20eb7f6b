"""Runtimes: the read-only sets of installed packages that a donor offers to jobs, each known by its digest.

A runtime is a Python environment made by the system's own interpreter. Such an environment is full of its own
absolute path (in the first line of each script, in pyvenv.cfg), so it can't be moved. Here it never is: while
it is built, its folder is mounted at the place where every job will later see it, /runtime. So all donors
with the same system and the same requirements get the same bytes, wherever they keep them. The interpreter
itself is not copied: `bin/python` is a link to /usr/bin/python3, which jobs see, too. The digest covers it
only by the version that pyvenv.cfg names; what a donor runs is in its own hands in any case.

Digest, version 1: SHA-256 of "allmende runtime 1\\n" followed by, for each regular file and link below the
folder in ascending order of path bytes, `kind SP hash SP path NUL`; kind is `x` for a file that its owner may
execute, `f` for another, `l` for a link; hash is the lower-case hex SHA-256 of the contents or of the link's
target; path is relative, parts separated by `/`. Folders count only through what is in them. Anything in a
folder `__pycache__` is left out: Python derives it from the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from node.donor.executors.launch import RUNTIME
from node.errors import UserError
from node.files import write_atomically

# With all that they depend on: nothing is resolved while building, so nothing can come out differently.
KNOWN_RUNTIMES: dict[str, tuple[str, ...]] = {
    "python-ml": (
        "cloudpickle==3.1.2",
        "joblib==1.6.0",
        "narwhals==2.29.0",
        "numpy==2.4.6",
        "scikit-learn==1.9.1",
        "scipy==1.17.1",
        "threadpoolctl==3.8.0",
    ),
    # What cupy[ctk] resolves to, without its empty collective package. Needs a driver for CUDA 12; 1.8 GB are fetched.
    "python-gpu": (
        "cuda-pathfinder==1.9.0",
        "cupy-cuda12x==14.2.0",
        "numpy==2.4.6",
        "nvidia-cublas-cu12==12.9.2.10",
        "nvidia-cuda-nvrtc-cu12==12.9.86",
        "nvidia-cuda-runtime-cu12==12.9.79",
        "nvidia-cufft-cu12==11.4.1.4",
        "nvidia-curand-cu12==10.3.10.19",
        "nvidia-cusolver-cu12==11.7.5.82",
        "nvidia-cusparse-cu12==12.5.10.65",
        "nvidia-nvjitlink-cu12==12.9.86",
    ),
}

_PYTHON = "/usr/bin/python3"
_BUILD_SECONDS_MAX = 1800.0
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_PINNED = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+")
_DIGEST_TITLE = b"allmende runtime 1\n"
_READ_BYTES = 1 << 20
# They would make the new environment look into another one, or install elsewhere.
_HINDERING_VARIABLES = frozenset(
    {
        "PYTHONHOME",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "VIRTUAL_ENV",
        "TMPDIR",
        "PIP_USER",
        "PIP_TARGET",
        "PIP_PREFIX",
    }
)


@dataclass(frozen=True)
class Runtime:
    """A runtime that is ready for jobs.

    Invariant: nothing below `directory` changes as long as it is offered.
    """

    name: str
    digest: bytes
    directory: Path
    requirements: tuple[str, ...]


def build_runtime(
    name: str,
    requirements: tuple[str, ...],
    directory: Path,
    report: Callable[[str], None] = lambda line: None,
) -> Runtime:
    """Makes the runtime below `directory`, or finds it there, made earlier from the same requirements.

    Takes a minute where packages must be fetched and a fraction of a second where there are none. It appears
    under its name only when it is complete. `report` gets a line of progress now and then. Raises: UserError.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} can't be a runtime's name: use lower-case letters, digits and -")
    for requirement in requirements:
        if not _PINNED.fullmatch(requirement):
            raise UserError(f"a runtime needs exact versions: write {requirement!r} as name==version")
    requirements = tuple(sorted(requirements))
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / name).exists():
        existing = load_runtimes(directory).get(name)
        if existing is not None and existing.requirements == requirements:
            return existing
        raise UserError(f"{directory / name} was made from other requirements: remove it first")
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=directory) as building:
        tree = Path(building, "tree")
        tree.mkdir()
        _fill(tree, requirements, report)
        report("computing the digest")
        digest, fingerprint = compute_runtime_digest(tree), _compute_fingerprint(tree)
        _write_record(directory, name, digest, requirements, fingerprint)
        tree.rename(directory / name)
    return Runtime(name, digest, directory / name, requirements)


def load_runtimes(directory: Path) -> dict[str, Runtime]:
    """The runtimes below `directory` by name.

    Digests are taken from the record of the last time, unless size, time or mode of any file has changed
    since: then they are computed anew, so that what a job gets is what the offer says.
    """
    directory = directory.resolve()
    runtimes = {}
    for path in sorted(directory.glob("*.json")):
        tree = directory / path.stem
        if not tree.is_dir():
            continue
        try:
            record = json.loads(path.read_text())
            digest = bytes.fromhex(record["digest"])
            requirements = tuple(map(str, record["requirements"]))
            recorded_fingerprint = record["fingerprint"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"the record {path} can't be read ({error}): remove {tree} and it") from error
        fingerprint = _compute_fingerprint(tree)
        if fingerprint != recorded_fingerprint:
            digest = compute_runtime_digest(tree)
            _write_record(directory, path.stem, digest, requirements, fingerprint)
        runtimes[path.stem] = Runtime(path.stem, digest, tree, requirements)
    return runtimes


def compute_runtime_digest(directory: Path) -> bytes:
    """The digest that the head of this module defines, 32 bytes.

    Raises: UserError for anything that is neither file, link nor folder.
    """
    total = hashlib.sha256(_DIGEST_TITLE)
    for path, status in _list_files(directory):
        place = os.path.join(os.fsencode(directory), path)
        if stat.S_ISLNK(status.st_mode):
            kind, content = b"l", hashlib.sha256(os.readlink(place))
        else:
            kind = b"x" if status.st_mode & stat.S_IXUSR else b"f"
            content = _hash_file(place)
        total.update(b"%s %s %s\0" % (kind, content.hexdigest().encode(), path))
    return total.digest()


def _list_files(directory: Path) -> Iterator[tuple[bytes, os.stat_result]]:
    """Relative paths and states of all files and links that count, in ascending order of path bytes."""
    root = os.fsencode(directory)
    found: list[tuple[bytes, os.stat_result]] = []
    waiting = [b""]
    while waiting:
        folder = waiting.pop()
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                path = os.path.join(folder, entry.name)
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    if entry.name != b"__pycache__":
                        waiting.append(path)
                elif stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                    found.append((path, status))
                else:
                    raise UserError(f"{directory} holds {os.fsdecode(path)}, neither file nor link: remove it")
    return iter(sorted(found, key=lambda pair: pair[0]))


def _hash_file(path: bytes) -> hashlib._Hash:
    content = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_READ_BYTES):
            content.update(block)
    return content


def _compute_fingerprint(directory: Path) -> str:
    """Changes with any usual change of a file, at a tenth of a digest's cost; means nothing elsewhere."""
    total = hashlib.sha256()
    for path, status in _list_files(directory):
        total.update(b"%s\0%d %d %d\n" % (path, status.st_mode, status.st_size, status.st_mtime_ns))
    return total.hexdigest()


def _write_record(directory: Path, name: str, digest: bytes, requirements: tuple[str, ...], fingerprint: str) -> None:
    record = {"digest": digest.hex(), "requirements": requirements, "fingerprint": fingerprint}
    write_atomically(directory / f"{name}.json", (json.dumps(record, indent=2) + "\n").encode(), 0o644)


def _fill(tree: Path, requirements: tuple[str, ...], report: Callable[[str], None]) -> None:
    python = f"{RUNTIME}/bin/python3"
    if not requirements:
        _run_at_its_place(tree, [_PYTHON, "-m", "venv", "--without-pip", RUNTIME])
        return
    report("making an empty environment")
    _run_at_its_place(tree, [_PYTHON, "-m", "venv", RUNTIME])
    report(f"fetching {', '.join(requirements)}")
    install = ["install", "--no-deps", "--only-binary", ":all:", "--no-compile", "--no-cache-dir"]
    _run_at_its_place(tree, [python, "-m", "pip", *install, "--disable-pip-version-check", "--no-input", *requirements])
    # Nothing was resolved, so whether anything is missing is asked now and not by the first job.
    _run_at_its_place(tree, [python, "-m", "pip", "check", "--disable-pip-version-check"])
    # Which installer the system came with says nothing about the runtime, and jobs have no use for one.
    _run_at_its_place(tree, [python, "-m", "pip", "uninstall", "--yes", "--quiet", "pip", "setuptools"])
    report("compiling")
    # A job can't store compiled modules, so they are made here; the mode makes them valid whatever the clock
    # says. Packages may hold files for other versions of Python, which fail to compile and are never
    # imported.
    compile_all = [python, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    _run_at_its_place(tree, [*compile_all, f"{RUNTIME}/lib"], is_failure_allowed=True)


def _run_at_its_place(tree: Path, command: list[str], is_failure_allowed: bool = False) -> None:
    """Runs a command that sees this machine as it is, read-only, with `tree` at the place of the runtime."""
    if shutil.which("bwrap") is None:
        raise UserError("a runtime can't be built without bubblewrap: apt-get install bubblewrap")
    view = ["bwrap", "--die-with-parent", "--new-session"]
    for name in sorted(os.listdir("/")):
        place = f"/{name}"
        if os.path.islink(place):
            view += ["--symlink", os.readlink(place), place]
        elif place not in ("/dev", "/proc", "/tmp", RUNTIME):
            view += ["--ro-bind-try", place, place]
    view += ["--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--bind", str(tree.resolve()), RUNTIME]
    environment = {name: value for name, value in os.environ.items() if name not in _HINDERING_VARIABLES}
    try:
        finished = subprocess.run(
            [*view, "--chdir", "/", "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            umask=0o022,  # modes count in the digest, the donor's taste must not
            timeout=_BUILD_SECONDS_MAX,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"building a runtime took longer than {_BUILD_SECONDS_MAX:.0f} s: try again") from None
    if finished.returncode != 0 and not is_failure_allowed:
        said = " ".join(finished.stdout.decode(errors="replace").split())[-600:]
        raise UserError(f"the runtime can't be built; {' '.join(command[:4])} said: {said}")
