"""What all jobs of one agent share: the keys, the charter, the way to the node, the machine itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.donor.executors.executor import Executor
from node.donor.post import Post
from node.donor.runtimes import Runtime
from node.donor.settings import Settings
from protocol.charter import Charter, Charters


@dataclass(frozen=True)
class Workshop:
    """`take_machine(conversation)` asks for the machine and says whether it was free; the other gives it back."""

    charters: Charters
    key: Ed25519PrivateKey
    seal_seed: bytes
    settings: Settings
    post: Post
    executor: Executor
    runtimes: dict[bytes, Runtime]
    """Those that are offered, by digest."""
    now: Callable[[], float]
    """Unix seconds."""
    take_machine: Callable[[str], bool]
    free_machine: Callable[[str], None]

    @property
    def charter(self) -> Charter:
        """The newest version that is known here."""
        return self.charters[max(self.charters)]
