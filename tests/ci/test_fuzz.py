"""Files and names from strangers: one clear line each, and nothing is written, unpickled or allocated."""

from __future__ import annotations

import io
import json
import os
import random
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay.kernels import UsageError
from assay.properties.counterexample import Counterexample, Unreadable, digest, restored
from assay.replay import read, store
from tests.ci.test_cli import run
from tests.ci.test_replay import ARGUMENTS, Trap, example


Pair = tuple[bytes, bytes]
"""A JSON file, and its archive."""

FEW, MANY = 400, 10_000
MOST = 32 << 20
"""Bytes that reading a small file may allocate."""


def files() -> Pair:
    path = store(example(ARGUMENTS, kernel="rope=assay.impl.rope:rope", folder=None), Path("kept"))
    return path.read_bytes(), path.with_suffix(".npz").read_bytes()


def flipped(content: bytes, draw: random.Random) -> bytes:
    out = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
    return bytes(out)


def cut(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    return draw.choice([content[:at], content[at:], content[:at] + content[at + draw.randrange(40) :], content * 2])


STRANGE = (
    None, True, -1, 0, 10**400, -(10**30), 1.5, 1e308, float("nan"), float("inf"), "", "x", "../x.npz", "/etc/passwd",
    "\0", "\ud800", "a\nb", "x" * 5000, [], [[[[]]]], {}, {"float": "nan"}, {"float": "x"}, {"array": "float32"},
    {"array": "object", "shape": [1], "memory": None}, [2**62, 2**62], [1, 1, 2, 4.0],
)  # fmt: skip


def nodes(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value, as container and key."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in pairs for place in ((value, key), *nodes(inner))]


def restructured(content: bytes, draw: random.Random) -> bytes:
    """Values replaced, dropped and added; every second time the digest is made to fit."""
    value = json.loads(content)
    for _ in range(draw.choice([1, 1, 1, 3])):
        container, key = draw.choice(nodes(value))
        change = draw.randrange(4)
        if change < 2:
            container[key] = draw.choice(STRANGE)
        elif change == 2:
            del container[key]
        elif isinstance(container, dict):
            container[draw.choice(["shape", "array", "x", "\n"])] = draw.choice(STRANGE)
        if not nodes(value):
            break
    if draw.random() < 0.5:
        fit(value)
    return json.dumps(value).encode()


def fit(value: Any) -> None:
    """The digest that this content should have, as a forger would compute it."""
    try:
        value["digest"] = ""
        restored(value, dict(ARGUMENTS))
    except Unreadable as error:
        if "digest" not in str(error):
            return
    except (AttributeError, TypeError):
        return


def archive(arrays: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, content in arrays.items():
            file.writestr(name, content)
    return out.getvalue()


def npy(values: Any, header: dict[str, Any] | None = None) -> bytes:
    out = io.BytesIO()
    if header is None:
        np.save(out, values, allow_pickle=True)
    else:
        np.lib.format.write_array_header_1_0(out, header)
        out.write(np.asarray(values).tobytes())
    return out.getvalue()


def repacked(content: bytes, draw: random.Random) -> bytes:
    """Archives that are whole, and say something else."""
    x, position = ARGUMENTS["x"], ARGUMENTS["position"]
    shape = draw.choice([(2**62, 2**62), (2**40,), (-1, -8), (8,), (), (0,), (1, 1, 2, 4), (2**31, 0), (True,)])
    descr = draw.choice(["<f4", "<f8", "|O", "|V4", "<U9", [("a", "<f4")], ">f4", "<M8[s]", "|S0", "(2,3)<f4"])
    header = {"descr": descr, "fortran_order": draw.random() < 0.5, "shape": shape}
    name = draw.choice(["x.npy", "../../x.npy", "/tmp/x.npy", "x", "x.npy/", "\n.npy", "y" * 300 + ".npy"])
    forged = draw.choice(
        [
            npy(x, header),
            npy(np.array([Trap()], object)),
            npy(np.zeros(1 << 22)),
            flipped(npy(x), draw),
            cut(npy(x), draw),
            b"\x93NUMPY\x03\x00" + npy(x)[8:],
            npy(x)[:10] + b"(" * 116 + b"\n" + x.tobytes(),
        ]
    )
    members = {name: forged, "position.npy": npy(position)}
    return draw.choice([archive(members), archive(members, zipfile.ZIP_DEFLATED), archive({"x.npy": forged}), content])


MUTATIONS: tuple[Callable[[Pair, random.Random], Pair], ...] = (
    lambda pair, draw: (flipped(pair[0], draw), pair[1]),
    lambda pair, draw: (cut(pair[0], draw), pair[1]),
    lambda pair, draw: (restructured(pair[0], draw), pair[1]),
    lambda pair, draw: (restructured(pair[0], draw), repacked(pair[1], draw)),
    lambda pair, draw: (pair[0], flipped(pair[1], draw)),
    lambda pair, draw: (pair[0], cut(pair[1], draw)),
    lambda pair, draw: (pair[0], repacked(pair[1], draw)),
)


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.nightly)])
def test_files_that_were_tampered_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Each is refused in one line, or is another whole counterexample: its digest fits."""
    monkeypatch.chdir(tmp_path)
    pair = files()
    draw = random.Random(count)
    path = next(Path("kept").glob("*.json"))
    told = []
    tracemalloc.start()
    for number in range(count):
        text, arrays = MUTATIONS[number % len(MUTATIONS)](pair, draw)
        path.write_bytes(text)
        path.with_suffix(".npz").write_bytes(arrays)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            found = read(path)
        except UsageError as error:
            told.append(str(error))
        else:
            assert isinstance(found, Counterexample)
            assert digest(found) == json.loads(text)["digest"]
        assert tracemalloc.get_traced_memory()[1] - before < MOST + 4 * len(arrays), (number, text)
        assert (path.read_bytes(), path.with_suffix(".npz").read_bytes()) == (text, arrays)
    tracemalloc.stop()
    assert len(told) > count // 2
    assert [line for line in told if len(line) > 500 or not line.isprintable()] == []
    assert sorted(p.name for p in tmp_path.rglob("*")) == sorted(["kept", path.name, path.with_suffix(".npz").name])


def test_what_is_no_file_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    for name in ("pipe", "/dev/zero", ".", "no\0name", "n" * 300):
        with pytest.raises(UsageError, match="cannot be read") as error:
            read(Path(name))
        assert "\n" not in str(error.value)
    path = store(example(ARGUMENTS), Path("kept"))
    path.with_suffix(".npz").unlink()
    os.mkfifo(path.with_suffix(".npz"))
    with pytest.raises(UsageError, match="it is not a file"):
        read(path)


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = store(example(ARGUMENTS), Path("kept"))
    bomb = npy(np.zeros(1 << 24))
    path.with_suffix(".npz").write_bytes(archive({"x.npy": bomb}, zipfile.ZIP_DEFLATED))
    del bomb
    tracemalloc.start()
    with pytest.raises(UsageError, match="it is not an archive of arrays"):
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


KERNEL = "import torch\nfrom kernels import right as rope\n"


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        "it's",
        'say "x"',
        "größe",
        "-dash",
        "a=b",
        "a:b",
        "a:b=c",
        "[x]",
        "$HOME",
        "a;b",
        "日本",
        "\x1b[2J",
        "json",
    ],
)
def test_module_paths_with_odd_characters_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent))
    Path(name).mkdir()
    for path in (f"{name}.py", f"{name}/k.py"):
        Path(path).write_text(KERNEL)
        result = run("identify", f"rope={path}:rope", "--dtype", "float32", "--quick")
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "spelling",
    [
        "rope=:", "=", ":", "rope=", "rope=a.py:", "=a.py:f", "rope=..:f", "rope=.a:f", "rope=a..b:f", "rope=a/:f",
        "rope=/:f",
        "rope=\x00:f", "rope=" + "n" * 5000 + ".py:f", "rope=" + "n" * 5000 + ":f", "rope=a\nb:f", "rope=\ud800.py:f",
        "rope=\ud800:f", "rope=os:path", "rope=os:\ud800", "rope=json.py:f", "a.b.c", "ro pe=os:getcwd",
        "rope=/dev/zero:f",
        "rope=/dev/zero.py:f", "rope=-c:f", "-x.py:f",
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["check", "identify"])
def test_spellings_that_mean_nothing_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, spelling: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(command, "--", spelling)
    assert result.exit_code == 2
    assert len(result.output.strip().splitlines()) == 1, result.output
    assert not list(tmp_path.iterdir())
