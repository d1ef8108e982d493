"""torch: `scaled_dot_product_attention`, each backend by itself, `flex_attention`, not compiled, `matrix_exp`, and
`solve_triangular` in a loop; convolution, by `conv1d` and by `rfft`.

`is_causal` is aligned top-left; it excludes `attn_mask`. A mask of numbers has the dtype of the query. A backend that
cannot run on what it is given raises a RuntimeError that names it: not covered.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from assay.impl.adapters._inputs import as_long
from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


EVERY = ("float64", "float32", "bfloat16", "float16")
TOP_LEFT = {"alignment": "top-left"}


def _sdpa(
    backend: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if causal and mask is not None:
        raise NotImplementedError("takes is_causal or attn_mask, not both")
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    with warnings.catch_warnings(), sdpa_kernel(getattr(SDPBackend, backend)):
        warnings.simplefilter("ignore")  # they say why a backend does not run
        try:
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
            )
        except RuntimeError as error:
            if "No available kernel" in str(error):
                raise NotImplementedError(f"the backend {backend} does not take these tensors") from None
            raise


@kernel("softmax_attention", conventions=TOP_LEFT, dtypes=EVERY, requires=("torch",))
def sdpa_math(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """SDPBackend.MATH."""
    return _sdpa("MATH", q, k, v, mask, causal, scale)


@kernel("softmax_attention", conventions=TOP_LEFT, dtypes=EVERY, requires=("torch",))
def sdpa_flash(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """SDPBackend.FLASH_ATTENTION, which wants e = d and contiguous channels."""
    return _sdpa("FLASH_ATTENTION", q.contiguous(), k.contiguous(), v.contiguous(), mask, causal, scale)


@kernel("softmax_attention", conventions=TOP_LEFT, dtypes=EVERY, requires=("torch",), backward="none")
def flex(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`flex_attention` with a score_mod, which has no backward on the CPU; the log of the sum in the dtype of q."""
    import torch
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    shape = (*q.shape[:-1], k.shape[-2])
    full = None if mask is None else mask.expand(shape)

    def score_mod(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        if full is not None:
            given = full[b, h, i, j]
            score = torch.where(given, score, -torch.inf) if full.dtype == torch.bool else score + given
        return torch.where(i >= j, score, -torch.inf) if causal else score

    gqa = q.shape[1] != k.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "called without torch.compile"
        returned = flex_attention(
            q, k, v, score_mod=score_mod, scale=scale, enable_gqa=gqa, return_aux=AuxRequest(lse=True)
        )
    out, aux = returned
    if not return_lse:
        return out
    assert aux.lse is not None
    return out, aux.lse.to(q.dtype)


@kernel("discretize", dtypes=("float64", "float32"))
def matrix_exp(
    A: torch.Tensor, B: torch.Tensor, *, dt: float | torch.Tensor, method: str = "bilinear"
) -> tuple[torch.Tensor, torch.Tensor]:
    """`torch.linalg.matrix_exp` of dt A, or of the block matrix with dt B."""
    import torch

    n = len(B)
    if A.shape != (n, n):  # the exponential is torch's, what is made of it is ours
        raise ValueError(f"A and B must have as many states as each other, not {list(A.shape)} and {list(B.shape)}")
    if method == "mamba":
        return torch.linalg.matrix_exp(dt * A), dt * B
    if method != "zoh":
        raise NotImplementedError("is an exponential")
    both = torch.nn.functional.pad(torch.cat((A, B[:, None]), dim=1), (0, 0, 0, 1))
    found = torch.linalg.matrix_exp(dt * both)[:n]
    return found[:, :n].clone(), found[:, n].clone()


@kernel("hippo_project", form="rows", dtypes=("float64", "float32"))
def solve_triangular(f: torch.Tensor, n: int, *, method: str = "zoh") -> torch.Tensor:
    """The plain loop over the samples: a matrix is made, and a system solved, for each."""
    import torch

    if method not in ("bilinear", "backward"):
        raise NotImplementedError("solves systems")
    part = 0.5 if method == "bilinear" else 1.0
    i = torch.arange(n, dtype=f.dtype, device=f.device)
    root = (2 * i + 1).sqrt()
    A = -((root[:, None] * root).tril(-1) + torch.diag(i + 1))
    one = torch.eye(n, dtype=f.dtype, device=f.device)
    rows = [f[:1] * one[0]] if n and len(f) else []
    for k in range(1, len(f)) if n else ():
        right = rows[-1] + (1 - part) / k * (A @ rows[-1]) + root / k * f[k]
        rows.append(torch.linalg.solve_triangular(one - part / k * A, right[:, None], upper=False)[:, 0])
    return torch.stack(rows) if rows else f[:, None] * root


@kernel("fft_convolve", form="fft", dtypes=("float64", "float32"), requires=("torch",))
def rfft(u: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
    """As models of long convolutions write it: to twice the length."""
    import torch

    t = u.shape[-1]
    if not as_long(u, K):
        return u + K
    spectrum = torch.fft.rfft(u, n=2 * t) * torch.fft.rfft(K, n=2 * t)
    return torch.fft.irfft(spectrum, n=2 * t)[..., :t]


@kernel("fft_convolve", form="direct", dtypes=EVERY, requires=("torch",))
def conv1d(u: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
    """A filter for each channel, with zeros before the first position."""
    import torch

    if not as_long(u, K):
        return u + K
    padded = torch.nn.functional.pad(u, (u.shape[-1] - 1, 0))
    return torch.nn.functional.conv1d(padded, K.flip(-1)[:, None], groups=u.shape[1])
