"""onnx: the reference evaluator of the standard's RotaryEmbedding (opset 23), in NumPy.

The operator takes `cos_cache` and `sin_cache` from its user, in the type of the input, and gathers their rows by
`position_ids`. Here they are computed in float64 and cast. Attributes: `interleaved`, `rotary_embedding_dim`.
Types: float, float16 and bfloat16, as the standard lists them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from assay.impl.adapters._inputs import four_axes, rotated_dim, table, table_rows
from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import numpy as np
    import torch


def model(dtype: str, *, interleaved: bool, rotary_dim: int) -> Any:
    """One node, X, cos_cache, sin_cache, position_ids -> Y; rotary_dim 0 rotates every channel."""
    from onnx import TensorProto, helper

    kind = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}[dtype]
    names = ["X", "cos_cache", "sin_cache", "position_ids"]
    attributes = {"interleaved": int(interleaved), "rotary_embedding_dim": rotary_dim}
    node = helper.make_node("RotaryEmbedding", names, ["Y"], **attributes)
    axes = [["b", "h", "t", "d"], ["rows", "pairs"], ["rows", "pairs"], ["b", "t"]]
    kinds = [kind, kind, kind, TensorProto.INT64]
    inputs = [helper.make_tensor_value_info(*three) for three in zip(names, kinds, axes, strict=True)]
    graph = helper.make_graph([node], "rope", inputs, [helper.make_tensor_value_info("Y", kind, axes[0])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def feeds(
    x: torch.Tensor, position: torch.Tensor, base: float, rotary_dim: int | None
) -> dict[str, np.ndarray[Any, Any]]:
    """The four inputs as NumPy arrays."""
    q = four_axes(x)
    cos, sin = table(table_rows(position, least=2048), rotated_dim(x, rotary_dim), base, x.dtype)
    ids = position.expand(q.shape[0], -1).contiguous()
    named = {"X": q, "cos_cache": cos, "sin_cache": sin}
    return {name: _array(tensor) for name, tensor in named.items()} | {"position_ids": ids.numpy()}


def _array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A bfloat16 tensor goes through its bits: NumPy knows the format only by ml_dtypes."""
    import torch

    tensor = tensor.detach()
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    import ml_dtypes

    return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)


@lru_cache(maxsize=32)
def _evaluator(dtype: str, interleaved: bool, rotary_dim: int) -> Any:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model(dtype, interleaved=interleaved, rotary_dim=rotary_dim))


@kernel("rope", dtypes=("float32", "bfloat16", "float16"), requires=("onnx",), backward="none")
def reference_evaluator(
    x: torch.Tensor,
    position: torch.Tensor,
    *,
    base: float = 10000.0,
    layout: str = "half",
    rotary_dim: int | None = None,
) -> torch.Tensor:
    """Rounds to the type of the input after every operation, as NumPy does."""
    import torch

    evaluator = _evaluator(str(x.dtype).removeprefix("torch."), layout == "interleaved", rotary_dim or 0)
    (y,) = evaluator.run(None, feeds(x, position, base, rotary_dim))
    if x.dtype == torch.bfloat16:
        y = y.view("int16")
    return torch.from_numpy(y).view(x.dtype).reshape(x.shape)


# Attention ---------------------------------------------------------------------------------------------------------


def attention_model(dtype: str, mask: str, *, causal: bool, scale: float | None) -> Any:
    """One node, Q, K, V and, if `mask` names its type, attn_mask -> Y."""
    from onnx import TensorProto, helper

    types = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
    types["bool"] = TensorProto.BOOL
    axes = {
        "Q": ["b", "h", "t", "d"],
        "K": ["b", "g", "s", "d"],
        "V": ["b", "g", "s", "e"],
        "M": ["b1", "h1", "t", "s"],
    }
    names = ["Q", "K", "V", "M"][: 4 if mask else 3]
    attributes: dict[str, Any] = {"is_causal": int(causal)} | ({} if scale is None else {"scale": scale})
    node = helper.make_node("Attention", names, ["Y"], **attributes)
    kinds = [types[mask if n == "M" else dtype] for n in names]
    inputs = [helper.make_tensor_value_info(n, kind, axes[n]) for n, kind in zip(names, kinds, strict=True)]
    output = helper.make_tensor_value_info("Y", types[dtype], ["b", "h", "t", "e"])
    graph = helper.make_graph([node], "attention", inputs, [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def attention_feeds(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
) -> tuple[str, str, dict[str, np.ndarray[Any, Any]]]:
    """The types of the numbers and of the mask ("" for none), and the inputs by name."""
    import torch

    given = {"Q": q, "K": k, "V": v}
    if mask is not None:
        full = mask.expand(*mask.shape[:2], q.shape[-2], k.shape[-2])
        given["M"] = full.contiguous() if mask.dtype == torch.bool else full.to(q.dtype).contiguous()
    kind = "" if mask is None else str(given["M"].dtype).removeprefix("torch.")
    return str(q.dtype).removeprefix("torch."), kind, {n: _array(x.contiguous()) for n, x in given.items()}


@lru_cache(maxsize=256)
def _attention_evaluator(dtype: str, mask: str, causal: bool, scale: float | None) -> Any:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(attention_model(dtype, mask, causal=causal, scale=scale))


@kernel(
    "softmax_attention",
    conventions={"alignment": "top-left"},
    dtypes=("float32", "bfloat16", "float16"),
    requires=("onnx",),
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
    """Attention of opset 23 in the reference evaluator; `is_causal` is aligned top-left, as the standard says.

    The standard multiplies Q and K by the square root of `scale`, which therefore is not negative.
    """
    import torch

    if scale is not None and scale < 0:
        raise NotImplementedError("takes the square root of the scale")
    dtype, kind, feeds_ = attention_feeds(q, k, v, mask)
    (y,) = _attention_evaluator(dtype, kind, causal, scale).run(None, feeds_)
    if q.dtype == torch.bfloat16:
        y = y.view("int16")
    return torch.from_numpy(y).view(q.dtype)
