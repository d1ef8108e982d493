"""Texts in Markdown; and a summary of a run, as the pages of CI jobs show it.

Names and messages are strangers': they stand in code, where neither Markdown nor HTML means anything.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from assay.expected import Expectations
from assay.failures import Failure, Judged, failures, not_judged
from assay.lines import shortened
from assay.report import verdict


MOST = 1 << 20
"""Bytes that GitHub shows of the summary of a job's step; a longer one it refuses as a whole."""
LAST = 256
"""Of these, for the line that counts what there is no room for."""
LONGEST = 4000
"""Characters of a line."""


def append(path: Path, judged: Sequence[Judged], left_out: Mapping[str, str], known: Expectations) -> None:
    """Add a summary to a file. What is there is kept: others write to the page of a job too, and a job may check twice.

    Raises: OSError.
    """
    with open(path, "a", encoding="utf-8") as file:
        there = file.tell() if file.seekable() else 0  # a pipe has no length
        file.write(("\n" if there else "") + summary(judged, left_out, known, MOST - there))


def summary(judged: Sequence[Judged], left_out: Mapping[str, str], known: Expectations, room: int = MOST) -> str:
    """The table of verdicts; entries of known failures that are wrong; each failure; what is known, or not judged.

    `room`: so many bytes are used at most, as far as the table allows it.
    """
    counts = Counter(verdict(one, known) for one in judged)
    title = ", ".join(f"{counts[told]} {told}" for told in sorted(counts)) or "nothing was judged"
    skipped = [f"{name} {dtype}: {reason}" for name, dtype, reason in not_judged(judged)]
    skipped += [f"{name}: {reason}" for name, reason in left_out.items()]
    first = [f"## assay: {title}\n", _table(judged, known)] if judged else [f"## assay: {title}\n"]
    parts = [
        *_list("Known failures that are none, or have expired", known.problems(judged)),
        *map(_failure, failures(judged, known)),
        *_list("Known failures", known.lines(judged)),
        *_list("Not judged", skipped),
    ]
    left = room - LAST - sum(map(_size, first))
    shown: list[str] = []
    for number, part in enumerate(parts):
        left -= _size(part)
        if left < 0:
            return "\n".join([*first, *shown, f"There is no room for the other {len(parts) - number} parts.\n"])
        shown.append(part)
    return "\n".join([*first, *shown])


def _size(part: str) -> int:
    return len(part.encode()) + 1


def _table(judged: Sequence[Judged], known: Expectations) -> str:
    """A row for each kernel, a column for each dtype."""
    dtypes = list(dict.fromkeys(found.dtype for _, found in judged))
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for one in judged:
        kernel, found = one
        told = verdict(one, known)
        cell = told if told in ("pass", "known") else f"**{told}**"
        rows.setdefault((kernel.operator.name, kernel.name), {})[found.dtype] = cell
    lines = [["operator", "kernel", *dtypes], ["---"] * (2 + len(dtypes))]
    for (operator, kernel_name), cells in rows.items():
        names = (code(name).replace("|", r"\|") for name in (operator, kernel_name))
        lines.append([*names, *(cells.get(dtype, "") for dtype in dtypes)])
    return _rows(lines)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    return _rows([head, ["---"] * len(head), *cells])


def _rows(lines: Iterable[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _failure(failure: Failure) -> str:
    """What it looks like first, then what is wrong, where, and how to see it again."""
    lines = [f"### {code(failure.kernel)} {failure.dtype}\n"]
    lines += [f"**Diagnosis:** {code(text)}\n" for text in failure.diagnosis]
    case = [f"in {failure.case}"] if failure.case else []
    lines.append(block("text", f"{failure.property}: {failure.message}", *case))
    lines += [f"Also: {', '.join(map(code, failure.also))}\n"] if failure.also else []
    lines += [block("sh", failure.replay)] if failure.replay else []
    return "\n".join(lines)


def _list(title: str, lines: Sequence[str]) -> list[str]:
    """A title and a line for each, in one part; nothing without lines."""
    return [f"### {title}\n\n" + "".join(f"- {code(line)}\n" for line in lines)] if lines else []


def code(text: str) -> str:
    """A text as it is, within a line: between more backticks than it has in a row."""
    line = shortened(text, LONGEST)
    fence = "`" * (1 + _backticks(line))
    return f"{fence} {line} {fence}" if not line or "`" in (line[0], line[-1]) else f"{fence}{line}{fence}"


SPECIAL = re.compile(r"""(\\|\*|(?<!\w)_|_(?!\w)|<(?=[\w/!?])|(?m:^)[>#+-](?=\s)|\[(?=[^\]]*\]\()|~~)""")
"""What Markdown would take for more than a character."""


def escaped(text: str) -> str:
    """A text as it is, but for the code between its backticks."""
    parts = re.split("(`[^`]+`)", text)
    return "".join(part if place % 2 else SPECIAL.sub(r"\\\1", part) for place, part in enumerate(parts))


def prose(text: str) -> str:
    """A docstring: its paragraphs, and as code what is indented or a doctest."""
    parts: list[tuple[str, list[str]]] = [("", [])]
    for line in text.splitlines():
        before = parts[-1][0]
        kind = "text" if line.startswith("  ") else "pycon" if line.startswith(">>>") else ""
        if line and not kind and before == "pycon":
            kind = "pycon"  # what a doctest prints
        if kind != before or not line:
            parts.append((kind, []))
        parts[-1][1].extend([line] if line else [])
    return "\n".join(_part(kind, lines) for kind, lines in parts if lines)


def _part(kind: str, lines: Sequence[str]) -> str:
    text = textwrap.dedent("\n".join(lines))
    return f"```{kind}\n{text}\n```\n" if kind else f"{escaped(text)}\n"


def block(kind: str, *texts: str) -> str:
    """The same as lines of their own."""
    lines = [shortened(text, LONGEST) for text in texts]
    fence = "`" * max(3, 1 + _backticks("".join(lines)))
    return "\n".join([f"{fence}{kind}", *lines, f"{fence}\n"])


def _backticks(text: str) -> int:
    """The longest row of them."""
    return max(map(len, re.findall("`+", text)), default=0)
