"""API keys: who may ask, and who may administer. No API keys set means everyone may ask."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence

from pydantic import SecretStr

from shiftnas_serve.problem import Problem


class ApiKeys:
    """The keys that are accepted as ``Authorization: Bearer KEY``. kind: what they are called."""

    def __init__(self, keys: Sequence[SecretStr], kind: str) -> None:
        self._keys = [key.get_secret_value().encode() for key in keys]
        self._kind = kind

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Raises Problem 401 unless there are no keys, or one was sent. A key's bytes are UTF-8.

        Takes the same time whichever is wrong.
        """
        if not self._keys:
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        # Every key is compared, so that the time does not tell which one came close.
        right = [hmac.compare_digest(given.strip(b" \t"), key) for key in self._keys]
        if scheme.lower() != b"bearer" or not any(right):
            raise Problem(
                401,
                f"send a {self._kind} of this server: Authorization: Bearer KEY",
                headers={"WWW-Authenticate": "Bearer"},
            )
