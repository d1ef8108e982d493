"""The documentation: generated pages are up to date, links resolve, and everything that is shown runs.

Blocks of a page run in its order, in an empty folder. A paragraph that ends with a file name in code and a colon names
the file that the next block is. Lines that begin with `$ ` in a `console` block are commands, the others what they
print: there numbers and digests may differ, and `...` stands for anything. Without output, a command succeeds. Comments
before a block say what is special about it:

    <!-- nightly -->                            it takes long
    <!-- needs jax -->                          it is skipped where there is none
    <!-- with FILE of PAGE -->                  the file as another page leaves it is there
    <!-- not run: REASON -->                    commands of assay are parsed all the same
    <!-- in FILE: OLD becomes NEW -->           no block: the reader is asked to change a file
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner
from markdown_it import MarkdownIt
from markdown_it.token import Token

from assay import docs
from assay.cli import main
from assay.findings import slug


ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted(p for p in (ROOT / "docs").glob("*.md") if p.name != "findings.md"))
LINKED = sorted(p for p in ROOT.rglob("*.md") if not any(part.startswith(".") for part in p.relative_to(ROOT).parts))
PARSER = MarkdownIt("commonmark", {"html": True}).enable("table")


@dataclass(frozen=True)
class Block:
    """A fence: what it is, under which conditions it runs, and the file that it is, if it is one."""

    page: Path
    line: int
    kind: str
    text: str
    file: str = ""
    notes: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.page.name}:{self.line}"

    def note(self, start: str) -> str:
        return next((n.removeprefix(start).strip(" :") for n in self.notes if n.startswith(start)), "")


def blocks(page: Path) -> Iterator[Block]:
    """The fences of a page, and the changes that it asks for, in order."""
    tokens = PARSER.parse(page.read_text(encoding="utf-8"))
    notes: list[str] = []
    said = ""
    for token in tokens:
        line = token.map[0] + 1 if token.map else 0
        if token.type == "html_block":
            note = token.content.strip().removeprefix("<!--").removesuffix("-->").strip()
            if note.startswith("in "):
                yield Block(page, line, "change", note)
            else:
                notes.append(note)
        elif token.type == "inline":
            said = token.content
        elif token.type == "fence":
            named = re.search(r"`(\w+\.(?:py|toml))`:$", said)
            yield Block(page, line, token.info, token.content, named[1] if named else "", tuple(notes))
            notes, said = [], ""
        elif token.type == "heading_open":
            assert not notes, f"{page.name}:{line}: a note without a block"


BLOCKS = [block for page in PAGES for block in blocks(page)]
RUN = [block for block in BLOCKS if block.kind == "console" or (block.kind == "python" and not block.file)]


def params(nightly: bool) -> list[object]:
    return [pytest.param(b, id=b.id) for b in RUN if ("nightly" in b.notes) == nightly and not b.note("not run")]


def prepare(block: Block, folder: Path) -> None:
    """The files that a reader has before this block."""
    name, _, page = block.note("with").partition(" of ")
    if page:
        write(blocks(ROOT / page), folder)
        assert (folder / name).is_file()
    write((b for b in blocks(block.page) if b.line < block.line), folder)


def write(shown: Iterable[Block], folder: Path) -> None:
    """The files that some blocks are, as far as they change them."""
    for before in shown:
        if before.file:
            (folder / before.file).write_text(before.text, encoding="utf-8")
        elif before.kind == "change":
            match = re.fullmatch(r"in (\S+): (.*) becomes (.*)", before.text)
            assert match is not None
            path = folder / match[1]
            text = path.read_text(encoding="utf-8")
            assert text.count(match[2]) == 1
            path.write_text(text.replace(match[2], match[3]), encoding="utf-8")


def masked(line: str) -> str:
    """A line without its numbers, digests and widths."""
    return " ".join(re.sub(r"\b(?:[0-9a-f]{16}|inf)\b|[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?", "#", line).split())


@pytest.fixture(autouse=True)
def _as_a_stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = {*sys.modules}
    yield  # type: ignore[misc]  # pytest knows what a fixture that yields is
    for name in {*sys.modules} - loaded:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def run(block: Block, folder: Path) -> None:
    needed = block.note("needs")
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    prepare(block, folder)
    if block.kind == "python":
        exec(compile(block.text, block.id, "exec"), {"__name__": "block"})
        return
    shown: list[list[str]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            shown.append([line.removeprefix("$ ")])
        else:
            shown[-1].append(line)
    for command, *expected in shown:
        code, printed = ran(command.partition("  #")[0])
        if not expected:
            assert code == 0, f"{command}\n{printed}"
            continue
        if expected[-1] == "...":
            expected.pop()
            printed = "\n".join(printed.rstrip().splitlines()[: len(expected)])
        assert [*map(masked, printed.rstrip().splitlines())] == [*map(masked, expected)], printed


def ran(command: str) -> tuple[int, str]:
    """The exit code of a command, and what it prints."""
    words = shlex.split(command)
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        assert os.environ.get(name) == value, f"the tests run without {name}={value}"
    if words[0] == "assay":
        # In this process: that kernels run in another is tested elsewhere, and costs seconds.
        inside = words[1] in ("check", "identify") and not {"--in-process", "--world"} & {*words}
        result = CliRunner().invoke(main, [*words[1:], *(["--in-process"] if inside else [])])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout
    assert words[0] == "pytest", f"this command is not known to the test: {command}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words[1:]], capture_output=True, text=True
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("block", params(nightly=False))
def test_what_is_shown_runs(block: Block, tmp_path: Path) -> None:
    run(block, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("block", params(nightly=True))
def test_what_is_shown_runs_at_night(block: Block, tmp_path: Path) -> None:
    run(block, tmp_path)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.note("not run")], ids=lambda b: b.id)
def test_what_is_not_run_can_be_asked(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options exist, and Python is Python."""
    if block.kind == "python":
        compile(block.text, block.id, "exec")
    for line in block.text.splitlines() if block.kind == "console" else ():
        for part in line.removeprefix("$ ").partition("  #")[0].split("&&"):
            words = shlex.split(part)
            if words[0].rpartition("/")[2] == "assay":
                parsed(words[1:], monkeypatch)


@pytest.mark.nightly
def test_the_readme_installs(tmp_path: Path) -> None:
    """What the README installs with, in a copy of the tree; but for its dependencies, which pip would have to fetch:
    they are those of this environment."""
    pytest.importorskip("setuptools", "77")
    here = sysconfig.get_path("purelib")
    tree = tmp_path / "tree"
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=ignored)
    (install,) = (b for b in BLOCKS if b.page.name == "README.md" and b.text.endswith("activate\n"))
    without_network = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PYTHONPATH": here}
    purelib = ".venv/bin/python -c 'import sysconfig; print(sysconfig.get_path(\"purelib\"))'"
    script = [
        "set -e",
        *(line.removeprefix("$ ") for line in install.text.splitlines()),
        f'echo {here} > "$({purelib})/dependencies.pth"',
        f"unset PYTHONPATH && cd {tmp_path} && which assay",
        "assay check rope=assay.impl.rope:rope --quick --dtype float32",
    ]
    run = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tree,
        env={**os.environ, **without_network},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.startswith(str(tree / ".venv" / "bin" / "assay"))
    assert "pass" in run.stdout


def parsed(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises: UsageError of click for an option that does not exist."""
    command = main.commands[words[0]]
    for parameter in command.params:
        monkeypatch.setattr(parameter, "callback", None)  # whether a file is there is no question of the syntax
    command.make_context(words[0], words[1:], resilient_parsing=False)


# Pages and links -----------------------------------------------------------------------------------------------------


def test_generated_pages_are_up_to_date() -> None:
    stale = [
        path.relative_to(ROOT)
        for path, text in docs.pages(ROOT / "docs").items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    assert stale == [], "python -m assay.docs writes them"


def test_every_generated_page_is_of_something() -> None:
    """A page whose operator is gone goes too."""
    there = {*(ROOT / "docs" / "operators").glob("*"), ROOT / "docs" / "findings.md"}
    assert there == {*docs.pages(ROOT / "docs")}


@pytest.mark.parametrize("page", LINKED, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    for link in links(PARSER.parse(page.read_text(encoding="utf-8"))):
        if re.match("[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target), link


def links(tokens: list[Token]) -> Iterator[str]:
    for token in tokens:
        yield from links(token.children or [])
        if token.type in ("link_open", "image"):
            yield str(token.attrs.get("href") or token.attrs.get("src"))


def anchors(page: Path) -> set[str]:
    tokens = PARSER.parse(page.read_text(encoding="utf-8"))
    titles = [b for a, b in pairwise(tokens) if a.type == "heading_open"]
    return {slug("".join(t.content for t in title.children or [])) for title in titles}


def test_the_readme_is_short() -> None:
    """A stranger reads all of it."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_block_is_looked_at() -> None:
    """A kind that the test does not know would not be run, and nobody would notice."""
    for block in BLOCKS:
        assert block.kind in ("console", "python", "toml", "yaml", "change"), block.id
        assert block.kind != "toml" or block.file, block.id
