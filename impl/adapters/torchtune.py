"""torchtune: `RotaryPositionalEmbeddings(dim, max_seq_len, base)(x[b, t, h, d], input_pos=)` and two models' own.

A table of cos and sin is computed at construction, in float32; position ids of any order index it. `max_seq_len`
keeps its default of 4096 until a position needs more. The general module (Llama) computes in float32 whatever x is
and is interleaved; Phi-3's and Qwen2's are half.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from assay.impl.adapters._inputs import four_axes, table_rows
from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


ALL = ("float64", "float32", "bfloat16", "float16")
HALF = {"layout": "half"}


@lru_cache(maxsize=32)
def _module(module: str, name: str, d: int, rows: int, base: float, device: torch.device) -> Any:
    import importlib

    return getattr(importlib.import_module(module), name)(d, max_seq_len=rows, base=base).to(device)


def _apply(module: str, name: str, x: torch.Tensor, position: torch.Tensor, base: float) -> torch.Tensor:
    rope = _module(module, name, x.shape[-1], table_rows(position, least=4096), base, x.device)
    q = four_axes(x).transpose(1, 2)
    return rope(q, input_pos=position[None]).transpose(1, 2).reshape(x.shape)


@kernel("rope", conventions={"layout": "interleaved"}, dtypes=ALL, requires=("torchtune", "torchao"))
def llama(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """`torchtune.modules.RotaryPositionalEmbeddings`."""
    return _apply("torchtune.modules", "RotaryPositionalEmbeddings", x, position, base)


@kernel("rope", conventions=HALF, dtypes=ALL, requires=("torchtune", "torchao"))
def phi3(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """`Phi3RotaryPositionalEmbeddings`: multiplies by cos and sin in float32."""
    return _apply("torchtune.models.phi3._position_embeddings", "Phi3RotaryPositionalEmbeddings", x, position, base)


@kernel("rope", conventions=HALF, dtypes=ALL, requires=("torchtune", "torchao"))
def qwen2(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """`Qwen2RotaryPositionalEmbeddings`: casts cos and sin to the dtype of x first."""
    return _apply("torchtune.models.qwen2._positional_embeddings", "Qwen2RotaryPositionalEmbeddings", x, position, base)
