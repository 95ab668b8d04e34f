"""API keys: who may ask, and who may administer. No API keys set means everyone may ask."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence

from shiftnas_serve.problem import Problem


class ApiKeys:
    """The keys that are accepted as ``Authorization: Bearer KEY``. kind: what they are called."""

    def __init__(self, keys: Sequence[str], kind: str = "key") -> None:
        assert all(key.strip() for key in keys), "a blank key lets everyone in"
        self._keys = [key.encode() for key in keys]
        self._kind = kind

    def __len__(self) -> int:
        return len(self._keys)

    def check(self, headers: Mapping[bytes, bytes]) -> int | None:
        """The number of the key that was sent; None where the server has none.

        ``headers``: by lower-case name; a key's bytes are UTF-8.
        Raises Problem 401 unless a key is right. Takes the same time whichever is wrong.
        """
        if not self._keys:
            return None
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        sent = given.strip(b" \t")
        # Every key is compared, so that the time does not tell which one came close.
        right = [hmac.compare_digest(sent, key) for key in self._keys]
        if scheme.lower() != b"bearer" or not any(right):
            raise Problem(
                401,
                f"send a {self._kind} of this server: Authorization: Bearer KEY",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return right.index(True)
