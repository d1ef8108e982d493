"""Arrays as raw memory: they come back bit for bit, and whoever writes beside them is seen."""

from __future__ import annotations

import mmap
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, strategies as st

from assay import buffers
from assay.buffers import DTYPES, GUARD, Arena, Layout, Misfit, Values, contiguous, layout


ARENA = Arena()


def sliced(values: Values) -> Values:
    out = np.zeros((*values.shape[:-1], 2 * values.shape[-1] + 1), values.dtype)
    out[..., 1::2] = values
    return out[..., 1::2]


def offset(values: Values) -> Values:
    out = np.zeros(values.size + 3, values.dtype)
    out[3:] = values.ravel()
    return out[3:].reshape(values.shape)


def misaligned(values: Values) -> Values:
    out = np.zeros(values.nbytes + 1, np.uint8)
    out[1:] = np.frombuffer(values.tobytes(), np.uint8)
    return out[1:].view(values.dtype).reshape(values.shape)


LIES: dict[str, Callable[[Values], Values]] = {
    "contiguous": lambda v: v,
    "transposed": lambda v: np.ascontiguousarray(v.swapaxes(0, -1)).swapaxes(0, -1),
    "sliced": sliced,
    "offset": offset,
    "misaligned": misaligned,
    "reversed": lambda v: v[::-1, :, ::-1],
    "expanded": lambda v: np.broadcast_to(v[:1, :, :1], v.shape),
    "one": lambda v: v[0, 0, 0:1].reshape(()),
    "empty": lambda v: v[:, :0],
}


def laid(values: Values) -> tuple[Layout, Values]:
    where = layout(values)
    (start,), _ = ARENA.places([where])
    region = ARENA.region(start, where)
    buffers.write(values, where, region)
    return where, region


def numbers(dtype: str, shape: tuple[int, ...]) -> Values:
    bits = np.random.default_rng(7).integers(0, 256, (*shape, DTYPES[dtype].itemsize), dtype=np.uint8)
    return (bits & 1 if dtype == "bool" else bits).view(DTYPES[dtype]).reshape(shape)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("lies", list(LIES))
def test_an_array_comes_back_bit_for_bit(dtype: str, lies: str) -> None:
    values = LIES[lies](numbers(dtype, (3, 4, 5)))
    where, region = laid(values)
    assert (where.shape, where.strides) == (values.shape, values.strides)
    back = buffers.read(where, region)
    assert (back.dtype, back.shape, back.tobytes()) == (values.dtype, values.shape, values.tobytes())
    assert not buffers.touched(values, where, region)
    assert not buffers.trespassed(where, region)


@pytest.mark.parametrize("lies", ["sliced", "offset", "misaligned"])
def test_the_offset_into_the_own_buffer_is_kept(lies: str) -> None:
    values = LIES[lies](numbers("float32", (2, 3, 4)))
    assert layout(values).offset == {"sliced": 4, "offset": 12, "misaligned": 1}[lies]


@given(st.data())
def test_every_byte_that_is_written_is_seen(data: st.DataObject) -> None:
    """Each byte is that of an element or beside one; whichever changes, exactly one of the two sees it."""
    dtype, lies = data.draw(st.sampled_from(list(DTYPES))), data.draw(st.sampled_from(list(LIES)))
    values = LIES[lies](numbers(dtype, (3, 4, 5)))
    where, region = laid(values)
    mine = np.zeros(where.reach, np.bool_)
    for index in np.ndindex(values.shape):
        at = GUARD + where.offset + sum(i * s for i, s in zip(index, where.strides, strict=True))
        mine[at : at + where.width] = True
    at = data.draw(st.integers(GUARD - 8, GUARD + where.size + 7) | st.sampled_from([0, where.reach - 1]))
    region[at] ^= data.draw(st.integers(1, 255))
    assert buffers.touched(values, where, region) == mine[at]
    assert buffers.trespassed(where, region) == (not mine[at])


@pytest.mark.parametrize("dtype", [d for d in DTYPES if "float" in d or "complex" in d])
def test_what_lies_beside_floating_point_numbers_is_nan(dtype: str) -> None:
    where, region = laid(sliced(np.ones((2, 3), DTYPES[dtype])))
    width = where.width
    whole = region[GUARD % width : GUARD % width + where.reach // width * width].view(DTYPES[dtype])
    assert np.isnan(whole.astype(np.complex128)).sum() == len(whole) - 6


@pytest.mark.parametrize("dtype", ["int16", "int32", "int64", "uint32"])
def test_what_lies_beside_integers_is_far_out_of_range(dtype: str) -> None:
    _, region = laid(np.zeros(3, dtype))
    whole = region.view(dtype)
    assert (whole != 0).sum() == len(whole) - 3
    assert (whole[whole != 0] > np.iinfo(dtype).max // 4).all()


def test_huge_strides_cost_no_memory() -> None:
    """Two rows 2**31 elements apart: the memory between is not touched."""
    memory = mmap.mmap(-1, 1 << 34, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    whole = np.frombuffer(memory, np.float32)
    values = np.lib.stride_tricks.as_strided(whole, (2, 3), (1 << 33, 4))
    values[...] = [[1, 2, 3], [4, 5, 6]]
    where, region = laid(values)
    assert where.size > 1 << 33
    assert sum(stop - start for start, stop in buffers.spans(where)) == 2 * (12 + 2 * GUARD)
    assert buffers.read(where, region).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert not buffers.trespassed(where, region)
    region[GUARD + (1 << 33) - 1] ^= 1
    region[GUARD + 12] ^= 1
    assert buffers.trespassed(where, region) == 2
    assert not buffers.touched(values, where, region)


def test_calls_alternate_between_known_and_new_addresses() -> None:
    arena = Arena()
    where = layout(np.zeros((40, 50)))
    starts = [arena.places([where, where])[0] for _ in range(40)]
    assert all(start == starts[0] for start in starts[::2])
    fresh = [tuple(start) for start in starts[1::2]]
    assert len(set(fresh)) == len(fresh)
    assert tuple(starts[0]) not in fresh


def test_what_a_call_left_is_gone_from_new_addresses() -> None:
    arena = Arena()
    where = layout(np.zeros(40))
    arena.places([where])
    (start,), end = arena.places([where])
    arena.bytes[start : end + 100] = 7
    arena.places([where])
    assert not arena.bytes[start : end + 100].any()


def test_new_addresses_begin_anew_at_the_end() -> None:
    arena = Arena()
    where = contiguous("uint8", [arena.room // 2])
    starts = [arena.places([where])[0][0] for _ in range(12)]
    assert max(starts) + where.reach <= 3 * arena.room
    with pytest.raises(MemoryError, match="there is room for"):
        arena.places([where, where, where])


def test_another_map_of_an_arena_shows_the_same() -> None:
    other = Arena(ARENA.descriptor)
    where, region = laid(np.arange(5.0))
    start = region.ctypes.data - ARENA.bytes.ctypes.data
    assert buffers.read(where, other.region(start, where)).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("float7", [1]), ("float32", [-1]), ("float32", [1.5]), ("float32", [True]), ("int8", [1] * 65)],
)
def test_a_layout_that_means_nothing_is_refused(dtype: str, shape: list[int]) -> None:
    with pytest.raises(Misfit):
        contiguous(dtype, shape)


@pytest.mark.parametrize(("start", "length"), [(-1, 1), (0, 1 << 45), (len(ARENA.memory) - 1, 1)])
def test_an_array_outside_the_arena_is_refused(start: int, length: int) -> None:
    with pytest.raises(Misfit):
        ARENA.region(start, contiguous("float32", [length]))


def test_an_array_of_objects_is_refused() -> None:
    with pytest.raises(TypeError, match="an array of object"):
        layout(np.array([object()]))
