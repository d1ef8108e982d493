"""What strangers say, on one line of bounded length that a terminal shows as it is."""

from __future__ import annotations


LONGEST = 300
"""Characters."""


def one_line(error: BaseException) -> str:
    """The message of an exception, however hostile, on one line of bounded length."""
    try:
        text = str(error)
    except BaseException:
        return "(its message cannot be printed)"
    return shortened(text)


def shortened(text: str, longest: int = LONGEST) -> str:
    """A text on one line of bounded length, in characters that a terminal shows as they are."""
    plain = str.__getitem__(text, slice(0, 8 * longest))  # a subclass of str may answer anything else
    line = " ".join("".join(c if c.isprintable() or c.isspace() else "?" for c in plain).split())
    return line if len(line) <= longest else line[: longest - 3] + "..."


def type_name(error: BaseException) -> str:
    return name_of(type(error))


def name_of(kind: type) -> str:
    """The name of a class, whatever its metaclass says."""
    return shortened(type.__dict__["__name__"].__get__(kind))[:80]
