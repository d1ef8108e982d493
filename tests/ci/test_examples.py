"""The database of examples: what one machine found is the first try of another, whatever else lies in it."""

from __future__ import annotations

import pickle
import random
import shutil
import subprocess
import sys
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis.database import DirectoryBasedExampleDatabase, ExampleDatabase, InMemoryExampleDatabase

from assay.cli import main
from assay.examples import ARTIFACT, KEPT, LARGEST, TRIED, Examples, key, opened, read, written
from assay.kernels import Known, UsageError, resolve
from assay.properties.counterexample import Unreadable
from assay.properties.drawing import Case
from assay.properties.results import Examination, Result as Judged
from assay.properties.run import RECALLED
from tests.ci.test_fuzz import cut, flipped, repacked, restructured
from tests.ci.test_plugin import pytest_in
from tests.ci.test_replay import Trap


MINE = """
import torch

def rope(x, position, *, base=10000.0):
    if x.shape[-1] % 2 or not x.is_floating_point() or x.shape[-2] != len(position):
        raise ValueError("x must have an even number of floating-point channels, and a row for each position")
    theta = base ** (-torch.arange(0, x.shape[-1], 2).double() / x.shape[-1])
    angle = position.double()[:, None] * theta
    cos, sin = angle.cos(), angle.sin()
    a, b = x.double().chunk(2, dim=-1)
    out = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
    return out * (2 if {wrong} else 1)
"""
SELDOM = MINE.format(wrong="x.shape[-2] == 7")
RIGHT = MINE.format(wrong="False")
KEY = key("rope", "float32")


@pytest.fixture(autouse=True)
def _machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines, of which the second is where everything is run."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(SELDOM)
    monkeypatch.chdir(tmp_path / "two")


def check(*more: str, examples: int = 1) -> Result:
    """Judge on so few cases that nothing is found by itself."""
    few = ("--quick", "--dtype", "float32", "--examples", str(examples))
    arguments = ("check", "rope=mine.py:rope", "--in-process", *few, *more)
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


FOUND: list[bytes] = []
"""What the first machine has found; it need not find it for every test anew."""


def on_the_first(monkeypatch: pytest.MonkeyPatch) -> str:
    """The first machine finds the mistake; where it keeps what it found."""
    there = DirectoryBasedExampleDatabase("../one/.assay/examples")
    if not FOUND:
        with monkeypatch.context() as elsewhere:
            elsewhere.chdir("../one")
            found = check(examples=24)
        assert found.exit_code == 1
        assert RECALLED not in found.output
        FOUND.extend(there.fetch(KEY))
    for one in FOUND:
        there.save(KEY, one)
    return str(there.path)


def case(size: int = 7, seed: int = 0) -> Case:
    x = np.random.default_rng(seed).standard_normal((1, 1, size, 2)).astype(np.float32)
    arguments: dict[str, Any] = {"x": x, "position": np.arange(size), "base": 10000.0}
    return Case("float32", arguments, "ordinary", seed, {"x": "contiguous", "position": "contiguous"})


def value(size: int = 7, kernel: str = "rope=mine.py:rope", name: str = "agrees_with_oracle", seed: int = 0) -> bytes:
    return written("rope", kernel, name, case(size, seed))


# One machine and another ---------------------------------------------------------------------------------------------


def test_what_one_machine_found_is_the_first_try_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    there = on_the_first(monkeypatch)
    alone = check("--database", "")
    assert "x[" not in alone.output
    assert not Path(".assay/examples").exists()
    found = check("--database", ".assay/examples", "--database", there)
    assert found.exit_code == 1
    assert "agrees_with_oracle" in found.output
    assert f"x[1, 1, 7, 2], position[7], base=10000.0, attention_factor=1.0, float32, regime ordinary, {RECALLED}" in (
        found.output
    )
    # Kept in both places, so that it is known here from now on.
    assert RECALLED in check().output


def test_what_was_repaired_passes_and_stays_known(monkeypatch: pytest.MonkeyPatch) -> None:
    there = on_the_first(monkeypatch)
    before = sorted(Path(there).rglob("*"))
    Path("mine.py").write_text(RIGHT)
    found = check("--database", there)
    assert "undecided" in found.output  # too few cases, and none in which it fails
    assert RECALLED not in found.output
    assert sorted(Path(there).rglob("*")) == before


def test_another_kernel_of_the_operator_is_tried_too(monkeypatch: pytest.MonkeyPatch) -> None:
    there = on_the_first(monkeypatch)
    Path("other.py").write_text(SELDOM.replace("def rope", "def turned"))
    result = CliRunner().invoke(
        main, ["check", "rope=other.py:turned", "--in-process", "--quick", "--dtype", "float32", "--database", there]
    )
    assert RECALLED in result.output


def test_an_interrupted_run_is_resumed_with_the_examples_it_began_with() -> None:
    """It has added to them meanwhile."""
    found = check(examples=24)
    assert sorted(Path(".assay/examples").rglob("*"))
    again = check("--resume", examples=24)
    assert again.exit_code == 1
    assert again.output == found.output
    assert "answers another question (examples changed)" in _without_the_first(check(examples=24)).output


def _without_the_first(found: Result) -> Result:
    assert RECALLED in found.output
    for folder in Path(".assay/examples").iterdir():
        for file in folder.iterdir():
            file.unlink()
    return check("--resume", examples=24)


@pytest.mark.nightly
def test_processes_side_by_side_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    there = on_the_first(monkeypatch)
    arguments = ["check", "rope=mine.py:rope", "rope=mine.py:rope", "--quick", "--examples", "1", "--jobs", "2"]
    result = CliRunner().invoke(main, [*arguments, "--database", there])
    assert result.output.count(RECALLED) == 2


TESTS = """
import assay
from mine import rope
from hypothesis import settings
from hypothesis.database import DirectoryBasedExampleDatabase, MultiplexedDatabase, ReadOnlyDatabase

local = DirectoryBasedExampleDatabase("local")
settings.register_profile("shared", database=MultiplexedDatabase(local, ReadOnlyDatabase({there})))
settings.load_profile("shared")
test_rope = assay.conformance("rope", rope, examples={examples})
"""


def test_pytest_takes_the_database_of_hypothesis(monkeypatch: pytest.MonkeyPatch) -> None:
    there = on_the_first(monkeypatch)
    before = sorted(Path(there).rglob("*"))
    folder = Path.cwd()
    (folder / "test_mine.py").write_text(TESTS.format(there=f"DirectoryBasedExampleDatabase({there!r})", examples=1))
    out = pytest_in(folder, "test_mine.py").stdout
    assert "FAILED test_mine.py::test_rope[agrees_with_oracle-float32]" in out
    assert RECALLED in out
    assert sorted(Path(there).rglob("*")) == before
    assert list(DirectoryBasedExampleDatabase("local").fetch(KEY))


@pytest.mark.nightly
def test_pytest_on_many_cores() -> None:
    """Each worker keeps what it finds where all of them look."""
    folder = Path.cwd()
    (folder / "test_mine.py").write_text(TESTS.format(there="local", examples=20))
    many = ("-n", "2", "--dist", "load", "-k", "agrees or gradients")
    first = pytest_in(folder, "test_mine.py", *many).stdout
    assert "2 failed" in first
    (folder / "test_mine.py").write_text(TESTS.format(there="local", examples=1))
    second = pytest_in(folder, "test_mine.py", *many).stdout
    assert "2 failed" in second
    assert second.count(RECALLED) >= 2


# Places --------------------------------------------------------------------------------------------------------------


class Redis:
    """As much of a Redis client as Hypothesis uses."""

    servers: ClassVar[dict[str, dict[bytes, set[bytes]]]] = defaultdict(lambda: defaultdict(set))

    def __init__(self, url: str) -> None:
        self.sets = self.servers[url]
        self.answers: list[Any] = []

    @classmethod
    def from_url(cls, url: str) -> Redis:
        if "@@" in url:
            raise ValueError("it names no port")
        return cls(url)

    def pipeline(self) -> Redis:
        self.answers = []
        return self

    def smembers(self, name: bytes) -> None:
        self.answers.append(set(self.sets[name]))

    def sadd(self, name: bytes, value: bytes) -> None:
        self.answers.append(value not in self.sets[name])
        self.sets[name].add(value)

    def srem(self, name: bytes, value: bytes) -> None:
        self.answers.append(value in self.sets[name])
        self.sets[name].discard(value)

    def expire(self, name: bytes, time: Any) -> None:
        self.answers.append(True)

    def publish(self, channel: str, event: str) -> None:
        pass

    def execute(self) -> list[Any]:
        return self.answers


@pytest.fixture
def _redis(monkeypatch: pytest.MonkeyPatch) -> Iterable[None]:
    module = ModuleType("redis")
    vars(module)["Redis"] = Redis
    monkeypatch.setitem(sys.modules, "redis", module)
    yield
    Redis.servers.clear()
    sys.modules.pop("hypothesis.extra.redis", None)


@pytest.mark.usefixtures("_redis")
def test_examples_in_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    check("--database", "redis://there:6379/0", examples=24)
    monkeypatch.chdir("../one")
    found = check("--database", "redis://there:6379/0")
    assert found.exit_code == 1
    assert RECALLED in found.output
    assert not Path(".assay/examples").exists()
    assert RECALLED not in check("--database", "redis://elsewhere").output


@pytest.fixture
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterable[str]:
    """A Redis of this machine, which keeps nothing; the URL of its socket."""
    redis = pytest.importorskip("redis")
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("there is no redis-server here")
    folder = tmp_path_factory.mktemp("redis")
    url = f"unix://{folder}/redis"
    command = [program, "--port", "0", "--unixsocket", "redis", "--save", "", "--appendonly", "no"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as server:
        try:
            while not (folder / "redis").exists() and server.poll() is None:
                time.sleep(0.01)
            assert redis.Redis.from_url(url).ping()
            yield url
        finally:
            server.terminate()


def test_examples_in_a_server_of_redis(redis_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check("--database", redis_server, examples=24)
    monkeypatch.chdir("../one")
    found = check("--database", redis_server)
    assert found.exit_code == 1
    assert RECALLED in found.output
    assert not Path(".assay/examples").exists()
    unreachable = check("--database", f"{redis_server}-elsewhere", examples=24)
    assert RECALLED not in unreachable.output
    assert unreachable.output.count("the database of examples is not used any more") == 1
    assert "agrees_with_oracle" in unreachable.output


def test_examples_in_an_artifact_are_read_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder as a job has uploaded it, and this machine downloaded it today."""
    there = Path(on_the_first(monkeypatch))
    from datetime import UTC, datetime

    kept = Path(".assay/artifacts/me/kernels", ARTIFACT)
    kept.mkdir(parents=True)
    artifact = kept / f"{datetime.now(UTC).isoformat().replace(':', '_')}.zip"
    with zipfile.ZipFile(artifact, "w") as archive:
        for file in there.rglob("*"):
            if file.is_file():
                archive.write(file, file.relative_to(there))
    before = artifact.read_bytes()
    found = check("--database", "github://me/kernels")
    assert RECALLED in found.output
    assert artifact.read_bytes() == before


@pytest.mark.usefixtures("_redis")
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("mine.py", "mine.py is no folder of examples"),
        ("ftp://there", "write a folder, redis://HOST or github://OWNER/REPO"),
        ("github://me", "write github://OWNER/REPO"),
        ("github://me/mine/it/more", "write github://OWNER/REPO"),
        ("redis://@@", "it names no port"),
    ],
)
def test_what_is_no_place_is_one_line(place: str, message: str) -> None:
    found = check("--database", place)
    assert found.exit_code == 2
    assert message in found.output
    assert len(found.output.strip().splitlines()) == 1


def test_without_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(UsageError, match="pip install redis"):
        opened(["redis://there"])


# What lies in it -----------------------------------------------------------------------------------------------------


class Holding(InMemoryExampleDatabase):
    """A database with some values in it."""

    def __init__(self, *values: bytes) -> None:
        super().__init__()
        for one in values:
            self.save(KEY, one)

    @property
    def values(self) -> list[bytes]:
        return sorted(self.fetch(KEY))


def rope() -> Known:
    (found,) = resolve("rope=mine.py:rope")
    return found


def tried(database: ExampleDatabase) -> tuple[list[bytes], list[str]]:
    """On what a kernel is tried, and what is told."""
    told: list[str] = []
    examples = Examples(database, told.append)
    examples.fetch([(rope(), "float32")])
    return [*examples.of(rope(), "float32")], told


NEWER = value().replace(b'"version": 1', b'"version": 9')


@pytest.mark.parametrize(
    ("other", "message", "stays"),
    [
        (b"", "not a counterexample of assay", False),
        (b"\x80\x04", "not a counterexample of assay", False),
        (pickle.dumps(Trap()), "not a counterexample of assay", False),
        (value().partition(b"\n")[0], "not an archive of arrays", False),
        (value()[:-40], "not an archive of arrays", False),
        (value().replace(b'"seed": 0', b'"seed": 1'), "its digest does not fit", False),
        (value() + b" " * LARGEST, "larger than", False),
        (written("clip_loss", "", "agrees_with_oracle", case()), "it is about clip_loss in float32", False),
        (NEWER, "a newer assay wrote it", True),
        (
            written("rope", "", "p", replace(case(), arguments={**case().arguments, "tempo": 2})),
            "rope takes no tempo",
            True,
        ),
        (
            written("rope", "", "p", replace(case(), arguments={**case().arguments, "position": np.arange(4)})),
            "it means nothing: operands could not be broadcast",
            True,
        ),
    ],
)
def test_what_cannot_be_understood_is_left_out_in_one_line(other: bytes, message: str, stays: bool) -> None:
    """And removed, if nobody could."""
    database = Holding(other, value())
    found, told = tried(database)
    assert found == [value()]
    (line,) = told
    assert message in line
    assert len(line) < 500
    assert line.isprintable()
    assert (other in database.values) == stays
    assert not Path("sprung").exists()


def test_a_run_goes_on_whatever_lies_there() -> None:
    folder = DirectoryBasedExampleDatabase(".assay/examples")
    for one in (b"", b"garbage", pickle.dumps(Trap()), NEWER):
        folder.save(KEY, one)
    Path("mine.py").write_text(RIGHT)
    found = check()
    assert "error" not in found.output
    assert found.output.count("is left out") == 4
    assert check().output.count("is left out") == 1
    assert not Path("sprung").exists()


def test_values_that_were_tampered_with() -> None:
    """Each is refused in one line, or is another whole counterexample."""
    line, _, archive = value().partition(b"\n")
    draw = random.Random(0)
    refused = []
    for number in range(300):
        one = (flipped, cut, restructured)[number % 3](line, draw)
        two = (flipped, cut, repacked, lambda a, _: a)[number % 4](archive, draw)
        try:
            read(one + b"\n" + two)
        except Unreadable as error:
            refused.append(str(error))
    assert len(refused) > 200
    assert [told for told in refused if not told.isprintable()] == []


class Broken(ExampleDatabase):
    def save(self, key: bytes, value: bytes) -> None:
        raise OSError("no space left")

    def fetch(self, key: bytes) -> Iterable[bytes]:
        raise ConnectionError("nobody\nanswers")

    def delete(self, key: bytes, value: bytes) -> None:
        raise OSError("no space left")


def test_a_database_that_raises_is_told_once() -> None:
    told: list[str] = []
    examples = Examples(Broken(), told.append)
    examples.fetch([(rope(), "float32"), (rope(), "bfloat16")])
    examples.save(rope(), Examination("rope", "float32", [Judged("agrees_with_oracle", "fail", case=case())]))
    assert told == ["the database of examples is not used any more: ConnectionError: nobody answers"]


def test_of_each_kernel_and_property_a_few_are_kept() -> None:
    """The last one whatever its size: it is what the kernel fails today."""
    database = Holding(value(name="empty_axes"), value(kernel="rope=theirs.py:rope"))
    for size in (9, 1, 2, 3, 4, 5, 8):
        examples = Examples(database, print)
        result = Judged("agrees_with_oracle", "fail", case=case(size))
        examples.save(rope(), Examination("rope", "float32", [result]))
    sizes = sorted(read(v).case.arguments["position"].size for v in database.values if v not in Holding().values)
    assert len(database.values) == KEPT + 2
    assert sizes == [1, 2, 3, 7, 7, 8]


def test_a_kernel_is_tried_on_its_own_before_those_of_others() -> None:
    others = [value(1 + seed % 3, "rope=theirs.py:rope", seed=seed) for seed in range(2 * TRIED)]
    own = [value(40), value(50)]
    found, told = tried(Holding(*others, *own))
    assert told == []
    assert len(found) == TRIED
    assert found[-2:] == own
    assert [len(v) for v in found] == sorted(len(v) for v in found)
    assert sorted(map(len, found[:-2])) == sorted(map(len, others))[: TRIED - 2]


def test_the_same_case_is_the_same_bytes() -> None:
    assert value() == value()
    assert value() != value(seed=1)
