"""What a running server releases follows the store."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

from cloister.errors import CloisterError, StoreKeyError
from cloister.provision.decision import ClientJudge, Secret
from cloister.provision.store import Head, SecretStore
from cloister.provision.store_key import StoreKey

KEEP_SECONDS = 30.0
"""How much longer than a client may take secrets are kept that were replaced, before the wiping."""


@dataclasses.dataclass
class StoreWatcher:
    """Lets a judge release what is in the store now, and notices changes.

    A store that was changed by somebody without its key, or is older than what was seen before,
    releases nothing. A database that is away leaves the judge as it was.

    Attributes:
        store: the secrets.
        key: opens them.
        judge: gets them.
        on_failure: told of a change that cannot be read.
        keep_seconds: how long secrets that were replaced are still needed by clients that were
            judged before; then they are wiped.
    """

    store: SecretStore
    key: StoreKey
    judge: ClientJudge
    on_failure: Callable[[CloisterError], None]
    keep_seconds: float

    def __post_init__(self) -> None:
        self._head: Head | None = None
        self._seen = Head()
        self._failures: list[CloisterError] = []
        self._retired: list[tuple[float, tuple[Secret, ...]]] = []
        self.problem: str | None = None

    def poll(self) -> None:
        """Look once; reload if the store has changed. A failure is told once, not raised."""
        self._wipe_retired(time.monotonic() - self.keep_seconds)
        try:
            if self.store.head() != self._head:
                self.reload()
            self._tell(self._failures)
        except CloisterError as error:
            if isinstance(error, StoreKeyError):
                self._head = None
                if self.judge.secrets:
                    self._release(())
            self._tell([error])

    def reload(self) -> None:
        """Let the judge release what is in the store now.

        Raises:
            StoreKeyError: the store belongs to another key, was changed without it, or is older
                than it was before.
            StoreError: the database cannot be read.
        """
        loaded = self.store.load(self.key, self._seen)
        self._release(loaded.secrets)
        self._head = self._seen = loaded.head
        self._failures = loaded.failures
        self._tell(loaded.failures)

    def _release(self, secrets: Sequence[Secret]) -> None:
        self._retired.append((time.monotonic(), self.judge.secrets))
        self.judge.replace(secrets)

    def _tell(self, failures: Sequence[CloisterError]) -> None:
        """Tell of failures once, as long as they are the same."""
        problem = "; ".join(failure.message for failure in failures) or None
        if problem is not None and problem != self.problem:
            for failure in failures:
                self.on_failure(failure)
        self.problem = problem

    def close(self) -> None:
        """Wipe every secret."""
        self._release(())
        self._retired = [(0.0, secrets) for _, secrets in self._retired]
        self._wipe_retired(time.monotonic())

    def _wipe_retired(self, before: float) -> None:
        due = [item for item in self._retired if item[0] <= before]
        self._retired = [item for item in self._retired if item[0] > before]
        for _, secrets in due:
            for secret in secrets:
                secret.wipe()
