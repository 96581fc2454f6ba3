"""The one error that a user can cause, and the near matches that it offers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class StriateError(Exception):
    """A mistake that the user can mend: what was given, what is allowed, what to do.

    Its text is one line, so that the command line can print it without a traceback.
    """

    def __init__(
        self, given: str, *, allowed: str | Iterable[str] | None = None, hint: str | None = None
    ) -> None:
        self.given = given
        self.allowed = allowed if isinstance(allowed, str) or allowed is None else ", ".join(allowed)
        self.hint = hint
        parts = [given.rstrip(".")]
        if self.allowed:
            parts.append(f"allowed: {self.allowed}")
        if hint:
            parts.append(hint.rstrip("."))
        super().__init__(" ".join("; ".join(parts).split()))


class BadImage(StriateError):
    """An image that cannot be decoded, or is refused by the limits; listed and counted by the loaders."""


class BadModelFile(StriateError):
    """A weight or model file that is truncated, of another kind, or does not fit the net."""


def near(name: str, options: Iterable[str], count: int = 3) -> list[str]:
    """The options most like `name`, best first; letter case, `-`, `_` and blanks do not count."""

    def plain(text: str) -> str:
        return "".join(c for c in text.lower() if c.isalnum())

    by_plain: dict[str, str] = {}
    for option in options:
        by_plain.setdefault(plain(option), option)
    wanted = plain(name)
    found = difflib.get_close_matches(wanted, list(by_plain), n=count, cutoff=0.5)
    begins = [key for key in by_plain if wanted and key.startswith(wanted) and key not in found]
    return [by_plain[key] for key in (found + begins)[:count]]


def unknown(kind: str, name: object, options: Iterable[str], hint: str | None = None) -> StriateError:
    """The error for a name that is not in a list: near matches, then the list (at most 40 of it)."""
    names = sorted(options)
    close = near(str(name), names)
    shown = names if len(names) <= 40 else [*names[:40], f"and {len(names) - 40} more"]
    guess = f"did you mean {' or '.join(repr(c) for c in close)}?" if close else None
    text = " ".join(part for part in (guess, hint) if part)
    return StriateError(f"unknown {kind} {str(name)!r}", allowed=shown or "(none)", hint=text or None)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, not too long; its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
