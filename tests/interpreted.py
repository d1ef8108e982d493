"""Our Triton kernels, where the interpreter runs them."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import pytest


def triton(name: str) -> ModuleType:
    """The module of that name in assay.impl.triton; skips the test where there is no interpreter for it."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("set TRITON_INTERPRET=1 to judge Triton here")
    return importlib.import_module(f"assay.impl.triton.{name}")
