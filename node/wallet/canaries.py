"""Canary jobs: small jobs whose result is known before they are sent, to find donors that invent results.

Each is new: seed, sizes, names and the words of its program are drawn by chance, so no result can be replayed, and
nothing on the ledger or in the messages tells it from other jobs. A donor that reads the programs of its jobs with care
may still know one when it sees it; against such a donor only running real jobs twice (`rechecking`) helps.
"""

from __future__ import annotations

import ast
import hashlib
import json
import random
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from node.mnemonics import compute_mnemonic
from node.wallet import canary_task
from node.wallet.job_records import WalletJob, get_outputs_path
from node.wallet.rechecking import list_digests
from node.wallet.running import has_succeeded
from protocol.conversation import OUTPUT_NAME
from protocol.identifiers import ID_BYTES

if TYPE_CHECKING:
    from node.wallet.wallet import Wallet

SEED_BYTES = ID_BYTES
PRIMES = (65_521, 1_000_003, 2_147_483_647)
SIZES = (24, 40)
ROUNDS = (10, 25)
"""From the least to the most: parts of a second on one core."""


class Canary(NamedTuple):
    """A job file that was written, and what must come of it."""

    path: Path
    result_path: str
    result_digest: str
    """SHA-256 of the result file, in hex."""


class Verdict(StrEnum):
    """What a canary says of its donor."""

    PASSED = "passed"
    WRONG = "wrong"
    """It came to its end, and the result is not the right one."""
    FAILED = "failed"
    """There is no result to judge: the job did not come to its end, or could not be started."""


def write_canary(
    directory: Path, seed: bytes, sizes: tuple[int, int] = SIZES, rounds: tuple[int, int] = ROUNDS
) -> Canary:
    """Write a job file and its program into an empty directory; everything in them follows from the secret seed.

    The right result is computed here, which takes as long as the job.
    """
    generator = random.Random(seed)
    words = compute_mnemonic(generator.randbytes(32)).split()
    names = [f"{one}_{other}" for one, other in zip(words[::2], words[1::2], strict=True)]
    settings = (generator.randbytes(16).hex(), generator.randint(*sizes), generator.randint(*rounds))
    modulus = generator.choice(PRIMES)
    program, result, inputs, job = names.pop(), names.pop(), names.pop(), names.pop()
    source = _rename(Path(canary_task.__file__).read_text(encoding="utf-8"), names)
    compute = source.names["compute"]
    (directory / f"{inputs}.json").write_text(json.dumps([*settings, modulus]), encoding="utf-8")
    (directory / f"{program}.py").write_text(
        f"import json\n{source.text}\n\n"
        f"with open('{inputs}.json') as given, open('{OUTPUT_NAME}/{result}', 'w') as made:\n"
        f"    made.write({compute}(*json.load(given)))\n",
        encoding="utf-8",
    )
    memory = generator.choice((0.25, 0.5, 1))
    path = directory / "job.yaml"
    path.write_text(
        f"name: {job}\nresources: {{cpus: 1, memory: {memory}, disk_size: 0.1}}\n"
        f"run: python3 {program}.py\nmax_duration: {generator.randint(3, 9)}m\n",
        encoding="utf-8",
    )
    answer = canary_task.compute(*settings, modulus)
    return Canary(path, result, hashlib.sha256(answer.encode()).hexdigest())


def judge(wallet: Wallet, job: WalletJob, canary: Canary) -> Verdict:
    """What the job that ran the canary says of its donor."""
    path = get_outputs_path(wallet, job)
    if not has_succeeded(wallet, job):
        return Verdict.FAILED
    found = list_digests(path.read_bytes()) if path.exists() else {}
    return Verdict.PASSED if found == {canary.result_path: canary.result_digest} else Verdict.WRONG


class _Source(NamedTuple):
    text: str
    names: dict[str, str]


def _rename(text: str, names: list[str]) -> _Source:
    """A program without its comments, with other names for its functions."""
    tree = ast.parse(text)
    functions = [one for one in tree.body if isinstance(one, ast.FunctionDef)]
    chosen = dict(zip((one.name for one in functions), names, strict=False))
    for one in ast.walk(tree):
        if isinstance(one, ast.Module | ast.FunctionDef) and ast.get_docstring(one) is not None:
            del one.body[0]
        if isinstance(one, ast.FunctionDef):
            one.name = chosen[one.name]
        elif isinstance(one, ast.Name):
            one.id = chosen.get(one.id, one.id)
    return _Source(ast.unparse(tree), chosen)
