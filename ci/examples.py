"""The database of examples: what one machine found is the first try of every machine.

Each counterexample is kept as bytes, a line of JSON and an archive of arrays, in an example database of Hypothesis,
under a key of operator and dtype; so another kernel of the operator is tried on it too. Nothing is unpickled, nothing
is evaluated. What nobody can read is told in one line and removed. What a newer assay wrote, or a contract that is no
longer this one, is told and left: others may share the database. What passes now is left as well, since it failed once
and elsewhere may do so still; only of each kernel and property there are no more than a few.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from assay.archive import packed, unpacked
from assay.lines import one_line, shortened, type_name
from assay.loading import UsageError
from assay.properties.counterexample import VERSION, Counterexample, Unreadable, described, restored


if TYPE_CHECKING:
    from hypothesis.database import ExampleDatabase

    from assay.kernels import Known
    from assay.properties.drawing import Case
    from assay.properties.results import Examination


FOLDER = Path(".assay", "examples")
"""Where examples are kept if nobody says otherwise, seen from the working directory."""
ARTIFACT = "assay-examples"
"""The artifact of a GitHub repository that holds them, if nobody says otherwise."""
KEPT = 4
"""Of each kernel and property: the one that was found last, and the smallest of the others."""
TRIED = 32
"""On so many a kernel is tried in a dtype: those that it failed itself come first, then the smallest."""
LARGEST = 1 << 20
"""Bytes of an example."""

T = TypeVar("T")
Readable = tuple[Counterexample, bytes]


def key(operator: str, dtype: str) -> bytes:
    return f"assay {operator} {dtype}".encode()


def spelled(kernel: Known) -> str:
    """The kernel as a counterexample names it, wherever its file is."""
    from assay.replay import spelled

    return spelled(kernel, Path())[0] or kernel.name


def written(operator: str, kernel: str, name: str, case: Case) -> bytes:
    """A case in which a property was broken. Nothing of the machine is in it, so that the same case is always the same
    bytes. Raises: TypeError for an argument that is no data."""
    content, arrays = described(
        Counterexample(operator, kernel, None, name, case, None, None, {}, "", "fail", message="")
    )
    return json.dumps(content).encode() + b"\n" + packed(arrays)


class Newer(Unreadable):
    """A newer assay wrote it."""


def read(value: bytes) -> Counterexample:
    """Raises: Unreadable, in one line."""
    if len(value) > LARGEST:
        raise Unreadable(f"it is larger than {LARGEST:,} bytes")
    line, _, archive = value.partition(b"\n")
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        raise Unreadable("it is not a counterexample of assay") from None
    try:
        return restored(content, unpacked(archive))
    except ValueError as error:
        version = content.get("version") if isinstance(content, dict) else 0
        raise (Newer if type(version) is int and version > VERSION else Unreadable)(str(error)) from None


class Examples:
    """What a database held when a run began. Whatever happens to it is told, and never ends the run."""

    def __init__(self, database: ExampleDatabase | None, tell: Callable[[str], None]) -> None:
        self._database = database
        self._tell = tell
        self._found: dict[tuple[str, str], list[Readable]] = {}
        self._sound: dict[bytes, bool] = {}

    def fetch(self, work: Iterable[tuple[Known, str]], only: Collection[str] | None = None) -> list[str]:
        """Read what there is for some kernels and dtypes, or what of it has one of these names; the names of all on
        which a kernel will be tried."""
        work = [*work]
        for operator, dtype in dict.fromkeys((kernel.operator.name, dtype) for kernel, dtype in work):
            found = self._read(operator, dtype)
            self._found[operator, dtype] = [r for r in found if only is None or _name(r[1]) in only]
        return sorted({_name(value) for one in work for value in self.of(*one)})

    def of(self, kernel: Known, dtype: str) -> tuple[bytes, ...]:
        """Those that were fetched on which a kernel is tried, the smallest first."""
        own = spelled(kernel)
        found = self._found.get((kernel.operator.name, dtype), ())
        sound = (r for r in sorted(found, key=lambda r: (r[0].kernel != own, *_order(r))) if self._means(kernel, r))
        return tuple(value for _, value in sorted(islice(sound, TRIED), key=_order))

    def save(self, kernel: Known, examination: Examination) -> None:
        """Keep the counterexamples of a kernel."""
        operator, dtype, name = kernel.operator, examination.dtype, spelled(kernel)
        failed = [] if operator.random else [r for r in examination.results if r.case is not None]
        there = self._read(operator.name, dtype) if failed else []
        for result in failed:
            assert result.case is not None
            try:
                value = written(operator.name, name, result.property, result.case)
            except TypeError:  # an argument of the user's own that is no data
                continue
            same = [r for r in there if (r[0].kernel, r[0].property) == (name, result.property) and r[1] != value]
            if len(value) <= LARGEST:
                self._ask(methodcaller("save", key(operator.name, dtype), value), None)
                self._remove(operator.name, dtype, [old for _, old in sorted(same, key=_order)[KEPT - 1 :]])

    def _read(self, operator: str, dtype: str) -> list[Readable]:
        """What can be read of what there is."""
        found: list[Readable] = []
        none: list[bytes] = []
        values = self._ask(lambda database: sorted(database.fetch(key(operator, dtype))), none)
        for value in values:
            try:
                one = read(value)
                if (one.operator, one.case.dtype) != (operator, dtype):
                    raise Unreadable(f"it is about {one.operator} in {one.case.dtype}")
                found.append((one, value))
            except Newer as error:
                self._leave_out(operator, dtype, str(error))
            except Unreadable as error:
                self._leave_out(operator, dtype, str(error))
                self._remove(operator, dtype, [value])
        return found

    def _means(self, kernel: Known, one: Readable) -> bool:
        """Is it a case of the operator, as it is now?"""
        from assay.properties.examples import belongs
        from assay.properties.truth import truth_of
        from assay.reference.arithmetic.precision import natural

        example, value = one
        if value not in self._sound:
            try:
                belongs(kernel.operator, example.case)
                _ = truth_of(kernel.operator, example.case, None, natural(example.case.dtype).name).exact
                self._sound[value] = True
            except Exception as error:
                reason = str(error) if isinstance(error, Unreadable) else f"it means nothing: {one_line(error)}"
                self._leave_out(example.operator, example.case.dtype, reason)
                self._sound[value] = False
        return self._sound[value]

    def _leave_out(self, operator: str, dtype: str, reason: str) -> None:
        self._tell(f"an example of {operator} in {dtype} is left out: {shortened(reason)}")

    def _remove(self, operator: str, dtype: str, values: Iterable[bytes]) -> None:
        for value in values:
            self._ask(methodcaller("delete", key(operator, dtype), value), None)

    def _ask(self, what: Callable[[ExampleDatabase], T], otherwise: T) -> T:
        """What the database answers. One that raises is not asked again."""
        from hypothesis.errors import HypothesisWarning

        if self._database is None:
            return otherwise
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", HypothesisWarning)
            try:
                found = what(self._database)
            except Exception as error:
                self._database, found = None, otherwise
                self._tell(f"the database of examples is not used any more: {type_name(error)}: {one_line(error)}")
        for warning in warned:
            self._tell(f"the database of examples: {shortened(str(warning.message))}")
        return found


def _name(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()[:16]


def _order(one: Readable) -> tuple[int, bytes]:
    """The smallest first."""
    return len(one[1]), one[1]


def opened(places: Sequence[str]) -> ExampleDatabase | None:
    """The database that is in a folder, in Redis (redis://HOST) or in the artifacts of a GitHub repository, which are
    read alone (github://OWNER/REPO or github://OWNER/REPO/ARTIFACT); or in several of these. None: in no place.

    Raises: UsageError, in one line.
    """
    from hypothesis.database import MultiplexedDatabase

    found = [_opened(place) for place in places if place]
    return found[0] if len(found) == 1 else MultiplexedDatabase(*found) if found else None


def _opened(place: str) -> ExampleDatabase:
    from hypothesis.database import DirectoryBasedExampleDatabase, GitHubArtifactDatabase, ReadOnlyDatabase

    scheme, there, rest = place.partition("://")
    if not there:
        if Path(place).exists() and not Path(place).is_dir():
            raise UsageError(f"{place} is no folder of examples")
        return DirectoryBasedExampleDatabase(place)
    if scheme == "github":
        owner, repository, *artifact = [*rest.split("/"), ""]
        if not owner or not repository or len(artifact) > 2:
            raise UsageError(
                f"{place} is no place of examples: write github://OWNER/REPO or github://OWNER/REPO/ARTIFACT"
            )
        name = artifact[0] or ARTIFACT
        beside = FOLDER.with_name("artifacts") / owner / repository / name
        return ReadOnlyDatabase(GitHubArtifactDatabase(owner, repository, name, path=beside))
    if scheme not in ("redis", "rediss", "unix"):
        raise UsageError(f"{place} is no place of examples: write a folder, redis://HOST or github://OWNER/REPO")
    try:
        from hypothesis.extra.redis import RedisExampleDatabase
        from redis import Redis

        return RedisExampleDatabase(Redis.from_url(place))
    except ImportError:
        raise UsageError("examples in Redis need the package redis: pip install redis") from None
    except ValueError as error:
        raise UsageError(f"{place} is no place of examples: {one_line(error)}") from None
