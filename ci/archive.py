"""Arrays as bytes: an archive of NumPy's, without compression. What a stranger wrote is read without trusting it."""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from assay.properties.drawing import Values


MOST = 64
"""Arrays in an archive."""


def packed(arrays: Mapping[str, Values]) -> bytes:
    """The same arrays give the same bytes."""
    import numpy as np

    archive = io.BytesIO()
    np.savez(archive, **arrays)  # type: ignore[arg-type]  # a key of **arrays could be savez's own keyword
    return archive.getvalue()


def unpacked(content: bytes) -> dict[str, Any]:
    """The arrays of an archive. What is compressed, or says that it is larger than the archive, is never unpacked, and
    an array of Python objects never unpickled. Raises: ValueError, whose message says why."""
    reason = "it is not an archive of arrays"
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            members = archive.infolist()
            stored = all(m.compress_type == zipfile.ZIP_STORED and not m.flag_bits & 1 for m in members)
            if stored and len(members) <= MOST and sum(m.file_size for m in members) <= len(content):
                found = {m.filename.removesuffix(".npy"): _array(archive.read(m)) for m in members}
                if not any(v is None for v in found.values()):
                    return found
                reason = "it holds Python objects"
    except Exception:  # whatever the parsers of others raise for bytes that they do not understand
        pass
    raise ValueError(f"{reason}, or not a whole one")


def _array(content: bytes) -> Values | None:
    """The array in an .npy file, a view of it; None for one of Python objects. Raises: ValueError, among others."""
    import numpy as np

    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, transposed, dtype = header(file)
    if dtype.hasobject:
        return None
    rest = content[file.tell() :]
    if math.prod(shape) * dtype.itemsize != len(rest) or min(shape, default=0) < 0:
        raise ValueError("its shape does not fit its length")
    return np.frombuffer(rest, dtype).reshape(shape, order="F" if transposed else "C")
