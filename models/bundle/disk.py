"""What to do about a file that cannot be written, by what the system said."""

from __future__ import annotations

import errno
import re


def advice(error: BaseException) -> str:
    """A few words, or none where the reason has to speak for itself. The error, or its cause."""
    number = next((found for found in map(_number, _chain(error)) if found), 0)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "make room"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "choose another folder, or allow writing there"
    return ""


def reason(error: BaseException) -> str:
    """What the system said, which torch's and safetensors' own errors hide; else their first line.

    One line.
    """
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def refused(path: object, error: BaseException, then: str = "") -> str:
    """One line: the file, the reason, what to do. ``then``: what else, whatever the reason is."""
    steps = " and ".join(step for step in (advice(error), then) if step)
    return f"cannot write {path}: {reason(error)}" + (f"; {steps}" if steps else "")


def _number(error: BaseException) -> int:
    """The system's number of an error; safetensors tells it in words alone."""
    if isinstance(error, OSError):
        return error.errno or 0
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told else 0


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain
