"""transformers: the rotary embeddings of its models, in PyTorch.

A model builds its `...RotaryEmbedding(config)` once, calls it with x and position ids, and hands cos and sin to
`apply_rotary_pos_emb`; so do these adapters, one for each different text of that pair. The embedding stays in float32,
as `from_pretrained` leaves it, and casts cos and sin to the dtype of x. `rotary_dim` is `partial_rotary_factor`, a
fraction. `attention_factor` is the entry of that name in `rope_parameters`, documented as "the scaling factor to be
applied to the computed cos/sin", which YaRN reads: with factor 1 YaRN leaves the frequencies as they are.

Layout: half; but GPT-J, RoFormer, Cohere, GLM, GLM-4V and Llama 4 pair neighbours.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from assay.impl.adapters._inputs import four_axes, rotated_dim, table_rows
from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


ALL = ("float64", "float32", "bfloat16", "float16")
HALF = {"layout": "half"}
INTERLEAVED = {"layout": "interleaved"}
CLASSES = {
    "llama": ("LlamaConfig", "LlamaRotaryEmbedding"),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXRotaryEmbedding"),
    "gpt_oss": ("GptOssConfig", "GptOssRotaryEmbedding"),
    "qwen2_vl": ("Qwen2VLTextConfig", "Qwen2VLRotaryEmbedding"),
    "cohere": ("CohereConfig", "CohereRotaryEmbedding"),
    "glm": ("GlmConfig", "GlmRotaryEmbedding"),
    "glm4v": ("Glm4vTextConfig", "Glm4vTextRotaryEmbedding"),
    "llama4": ("Llama4TextConfig", "Llama4TextRotaryEmbedding"),
}


def _modeling(model: str) -> Any:
    import importlib

    return importlib.import_module(f"transformers.models.{model}.modeling_{model}")


@lru_cache(maxsize=64)
def _embedding(
    model: str,
    d: int,
    base: float,
    rotary_dim: int | None = None,
    sections: tuple[int, ...] | None = None,
    attention_factor: float = 1.0,
) -> Any:
    """The module that a model of one head of d channels holds."""
    modeling = _modeling(model)
    config, embedding = CLASSES[model]
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    rope["partial_rotary_factor"] = 1.0 if rotary_dim is None else rotary_dim / d
    if sections is not None:
        rope["mrope_section"] = list(sections)
    if attention_factor != 1.0:
        # As long as the model was trained for: the ratio of the two lengths is the factor, 1.
        yarn = {"factor": 1.0, "attention_factor": attention_factor, "original_max_position_embeddings": 2048}
        rope |= {"rope_type": "yarn", **yarn}
    sizes = {"hidden_size": d, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": d}
    sizes["max_position_embeddings"] = 2048
    return getattr(modeling, embedding)(getattr(modeling, config)(**sizes, rope_parameters=rope))


def _apply(model: str, x: torch.Tensor, position_ids: torch.Tensor, embedding: Any) -> torch.Tensor:
    """cos and sin once per forward pass, then queries and keys together: the query comes back."""
    q = four_axes(x)
    cos, sin = embedding(q, position_ids)
    return _modeling(model).apply_rotary_pos_emb(q, q, cos, sin)[0].reshape(x.shape)


def _axes(position: torch.Tensor, sections: tuple[int, ...] | None) -> torch.Tensor:
    """position[t, 3] as the models with M-RoPE take it, [3, 1, t]; text is the same on all three axes."""
    if sections is None:
        return position.expand(3, 1, -1)
    if len(sections) != 3:
        raise NotImplementedError("M-RoPE has three axes here: time, height, width")
    return position.mT[:, None]


@kernel("rope", conventions=HALF, dtypes=ALL, requires=("transformers",))
def llama(
    x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0, attention_factor: float = 1.0
) -> torch.Tensor:
    """Llama, and the many models that copy it."""
    embedding = _embedding("llama", x.shape[-1], base, attention_factor=attention_factor)
    return _apply("llama", x, position[None], embedding)


@kernel("rope", conventions=HALF, dtypes=ALL, requires=("transformers",))
def gpt_neox(
    x: torch.Tensor,
    position: torch.Tensor,
    *,
    base: float = 10000.0,
    rotary_dim: int | None = None,
    attention_factor: float = 1.0,
) -> torch.Tensor:
    """GPT-NeoX: rotates the leading channels."""
    embedding = _embedding("gpt_neox", x.shape[-1], base, rotary_dim, attention_factor=attention_factor)
    return _apply("gpt_neox", x, position[None], embedding)


@kernel("rope", conventions=HALF, dtypes=ALL, requires=("transformers",))
def gpt_oss(
    x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0, attention_factor: float = 1.0
) -> torch.Tensor:
    """GPT-OSS: cos and sin are not duplicated, the halves of x are rotated apart and joined."""
    embedding = _embedding("gpt_oss", x.shape[-1], base, attention_factor=attention_factor)
    return _apply("gpt_oss", x, position[None], embedding)


@kernel("rope", conventions=HALF, dtypes=ALL, requires=("transformers",))
def qwen2_vl(
    x: torch.Tensor,
    position: torch.Tensor,
    *,
    base: float = 10000.0,
    sections: tuple[int, ...] | None = None,
    attention_factor: float = 1.0,
) -> torch.Tensor:
    """Qwen2-VL: M-RoPE, `mrope_section` of channels for time, height and width."""
    d = x.shape[-1]
    embedding = _embedding("qwen2_vl", d, base, None, sections or (d // 2, 0, 0), attention_factor)
    return _apply("qwen2_vl", x, _axes(position, sections), embedding)


@kernel("rope", conventions=INTERLEAVED, dtypes=ALL, requires=("transformers",))
def cohere(
    x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0, attention_factor: float = 1.0
) -> torch.Tensor:
    """Cohere: rotates in float32, whatever x is, by cos and sin in the dtype of x."""
    embedding = _embedding("cohere", x.shape[-1], base, attention_factor=attention_factor)
    return _apply("cohere", x, position[None], embedding)


@kernel("rope", conventions=INTERLEAVED, dtypes=ALL, requires=("transformers",))
def glm(
    x: torch.Tensor,
    position: torch.Tensor,
    *,
    base: float = 10000.0,
    rotary_dim: int | None = None,
    attention_factor: float = 1.0,
) -> torch.Tensor:
    """GLM: rotates the leading channels."""
    embedding = _embedding("glm", x.shape[-1], base, rotary_dim, attention_factor=attention_factor)
    return _apply("glm", x, position[None], embedding)


@kernel("rope", conventions=INTERLEAVED, dtypes=ALL, requires=("transformers",))
def glm4v(
    x: torch.Tensor,
    position: torch.Tensor,
    *,
    base: float = 10000.0,
    rotary_dim: int | None = None,
    sections: tuple[int, ...] | None = None,
    attention_factor: float = 1.0,
) -> torch.Tensor:
    """GLM-4V: M-RoPE on the leading channels."""
    d = x.shape[-1]
    whole = (rotated_dim(x, rotary_dim) // 2, 0, 0)
    embedding = _embedding("glm4v", d, base, rotary_dim, sections or whole, attention_factor)
    return _apply("glm4v", x, _axes(position, sections), embedding)


@kernel("rope", conventions=INTERLEAVED, dtypes=ALL, requires=("transformers",))
def llama4(
    x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0, attention_factor: float = 1.0
) -> torch.Tensor:
    """Llama 4: a product of complex64 numbers, [b, t, h, d]."""
    q = four_axes(x).transpose(1, 2)
    freqs_cis = _embedding("llama4", x.shape[-1], base, attention_factor=attention_factor)(q, position[None])
    return _modeling("llama4").apply_rotary_emb(q, q, freqs_cis)[0].transpose(1, 2).reshape(x.shape)


@lru_cache(maxsize=8)
def _gptj_table(rows: int, r: int, device: torch.device) -> Any:
    modeling = _modeling("gptj")
    return modeling.GPTJRotaryEmbedding(modeling.GPTJConfig(n_positions=rows, rotary_dim=r)).to(device)


@kernel("rope", conventions=INTERLEAVED, dtypes=ALL, requires=("transformers",))
def gptj(x: torch.Tensor, position: torch.Tensor, *, rotary_dim: int | None = None) -> torch.Tensor:
    """GPT-J: base 10000, a float32 table of `n_positions` rows, [b, t, h, d]; attention slices the leading channels."""
    import torch

    q = four_axes(x).transpose(1, 2)
    r = rotated_dim(x, rotary_dim)
    sin, cos = _gptj_table(table_rows(position, least=2048), r, x.device)(q, position[None])
    rotated = _modeling("gptj").apply_rotary_pos_emb(q[..., :r], sin, cos)
    return torch.cat([rotated, q[..., r:]], dim=-1).transpose(1, 2).reshape(x.shape)


@lru_cache(maxsize=8)
def _roformer_table(rows: int, d: int, dtype: torch.dtype, device: torch.device) -> Any:
    """The table filled as the model's weight initialisation does, and a parameter: it is cast with the model."""
    table = _modeling("roformer").RoFormerSinusoidalPositionalEmbedding(rows, d)
    table.weight.data.copy_(table.create_weight())
    return table.to(device=device, dtype=dtype)


@kernel("rope", conventions=INTERLEAVED, dtypes=ALL, requires=("transformers",))
def roformer(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """RoFormer: base 10000, a table in the dtype of the model, which is that of x.

    Raises: NotImplementedError beyond position 12287, since the package fills its table in a loop over elements.
    """
    q = four_axes(x)
    rows = table_rows(position, least=1536, most=12288)
    embedding = _roformer_table(rows, x.shape[-1], x.dtype, x.device)
    sinusoidal = embedding(q.shape[1:3], position_ids=position)[None, None]
    attention = _modeling("roformer").RoFormerSelfAttention
    return attention.apply_rotary_position_embeddings(sinusoidal, q, q)[0].reshape(x.shape)


# Attention ---------------------------------------------------------------------------------------------------------


class _Layer:
    """What the attention functions read from the layer that calls them."""

    training = False

    def __init__(self, groups: int) -> None:
        self.num_key_value_groups = groups


def _added(mask: torch.Tensor | None, q: torch.Tensor) -> torch.Tensor | None:
    """The mask as models with eager attention make it: numbers in the dtype of the query, the least for hidden keys."""
    import torch

    if mask is None:
        return None
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, torch.finfo(q.dtype).min)
    return mask.to(q.dtype).clamp(min=torch.finfo(q.dtype).min)


@kernel("softmax_attention", conventions={"unseeing": "mean"}, dtypes=ALL, requires=("transformers",))
def eager_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """`eager_attention_forward` of Llama, as most models have it."""
    groups = q.shape[1] // k.shape[1]
    scaling = q.shape[-1] ** -0.5 if scale is None else scale
    attend = _modeling("llama").eager_attention_forward
    return attend(_Layer(groups), q, k, v, _added(mask, q), scaling=scaling)[0].transpose(1, 2)


@kernel("softmax_attention", conventions={"alignment": "top-left"}, dtypes=ALL, requires=("transformers",))
def sdpa_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """`sdpa_attention_forward`. One query is a decoding step there and sees every key: `causal` is passed for more."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if causal and (mask is not None or q.shape[-2] == 1):
        raise NotImplementedError("is_causal holds without a mask, for more than one query")
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    layer = _Layer(q.shape[1] // k.shape[1])
    return sdpa_attention_forward(layer, q, k, v, mask, scaling=scale, is_causal=causal)[0].transpose(1, 2)


# Losses ------------------------------------------------------------------------------------------------------------


@kernel("clip_loss", dtypes=ALL, requires=("transformers",))
def clip(image: torch.Tensor, text: torch.Tensor, *, scale: float | torch.Tensor) -> torch.Tensor:
    """`image_text_contrastive_loss` of the logits as CLIPModel computes them from its normalised features."""
    import torch

    logits_per_text = torch.matmul(text, image.t()) * scale
    return _modeling("clip").image_text_contrastive_loss(logits_per_text)


# Scans -------------------------------------------------------------------------------------------------------------


@kernel("selective_scan", form="sequential", dtypes=("float64", "float32"), requires=("transformers",))
def mamba(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *,
    D: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`mamba_selective_scan`, the path without CUDA: one position after the other, from a state of 0.

    B and u pass through float32 on the way, whatever their dtype is.
    """
    return _modeling("mamba").mamba_selective_scan(u, delta, A, B, C, D, return_last_state=True)
