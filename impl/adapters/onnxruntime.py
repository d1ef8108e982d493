"""onnxruntime: RotaryEmbedding of the standard (opset 23) and of com.microsoft, on the CPU provider.

Both take `cos_cache` and `sin_cache` from their user, in the type of the input, and gather their rows by
`position_ids`. Here they are computed in float64 and cast. Attributes: `interleaved`, `rotary_embedding_dim`.
Types with a CPU kernel: float and float16.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from assay.impl.adapters._inputs import four_axes
from assay.impl.adapters.onnx import attention_feeds, attention_model, feeds, model
from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


DTYPES = ("float32", "float16")


@lru_cache(maxsize=32)
def _session(domain: str, dtype: str, interleaved: bool, rotary_dim: int, heads: int) -> Any:
    from onnx import helper
    from onnxruntime import InferenceSession

    proto = model(dtype, interleaved=interleaved, rotary_dim=rotary_dim)
    if domain:
        (node,) = proto.graph.node
        node.domain = domain
        node.input[:] = ["X", "position_ids", "cos_cache", "sin_cache"]
        # "Must be used with rotary_embedding_dim", and is needed for nothing else where the input has four axes.
        node.attribute.append(helper.make_attribute("num_heads", heads))
        proto.opset_import.append(helper.make_opsetid(domain, 1))
    return InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def _run(
    domain: str, x: torch.Tensor, position: torch.Tensor, base: float, layout: str, rotary_dim: int | None
) -> torch.Tensor:
    import torch

    heads = four_axes(x).shape[1]
    dtype = str(x.dtype).removeprefix("torch.")
    session = _session(domain, dtype, layout == "interleaved", rotary_dim or 0, heads)
    (y,) = session.run(None, feeds(x, position, base, rotary_dim))
    return torch.from_numpy(y).reshape(x.shape)


@kernel("rope", dtypes=DTYPES, requires=("onnxruntime", "onnx"), backward="none")
def standard(
    x: torch.Tensor,
    position: torch.Tensor,
    *,
    base: float = 10000.0,
    layout: str = "half",
    rotary_dim: int | None = None,
) -> torch.Tensor:
    """`ai.onnx` RotaryEmbedding, opset 23."""
    return _run("", x, position, base, layout, rotary_dim)


@kernel("rope", dtypes=DTYPES, requires=("onnxruntime", "onnx"), backward="none")
def microsoft(
    x: torch.Tensor,
    position: torch.Tensor,
    *,
    base: float = 10000.0,
    layout: str = "half",
    rotary_dim: int | None = None,
) -> torch.Tensor:
    """`com.microsoft` RotaryEmbedding."""
    return _run("com.microsoft", x, position, base, layout, rotary_dim)


@lru_cache(maxsize=256)
def _attention_session(dtype: str, mask: str, causal: bool, scale: float | None) -> Any:
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.log_severity_level = 4  # what it refuses it also raises
    proto = attention_model(dtype, mask, causal=causal, scale=scale)
    return InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


@kernel(
    "softmax_attention",
    conventions={"alignment": "top-left"},
    dtypes=DTYPES,
    requires=("onnxruntime", "onnx"),
    backward="none",
)
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """`ai.onnx` Attention, opset 23: scale > 0; `is_causal` is aligned top-left."""
    import torch

    if scale is not None and scale <= 0:
        raise NotImplementedError("takes a positive scale only")
    dtype, kind, given = attention_feeds(q, k, v, mask)
    (y,) = _attention_session(dtype, kind, causal, scale).run(None, given)
    return torch.from_numpy(y)
