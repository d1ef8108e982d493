"""What must hold: contracts, bounds, properties, diagnosis. Kernels are received as arguments, never imported."""

from __future__ import annotations

from assay.properties.attention import SOFTMAX_ATTENTION
from assay.properties.contract import Operator
from assay.properties.contrastive import CLIP_LOSS, SIGLIP_LOSS
from assay.properties.convolution import FFT_CONVOLVE
from assay.properties.discretize import DISCRETIZE
from assay.properties.dplr import S4_KERNEL
from assay.properties.linear_attention import LINEAR_ATTENTION, UNNORMALIZED_ATTENTION
from assay.properties.performer import PERFORMER_ATTENTION, RANDOM_FEATURES
from assay.properties.projection import RANDOM_PROJECTION
from assay.properties.rope import ROPE
from assay.properties.s4 import S4D_KERNEL
from assay.properties.selective_scan import SELECTIVE_SCAN
from assay.properties.state_space import SSM_KERNEL, SSM_SCAN


OPERATORS: dict[str, Operator] = {
    o.name: o
    for o in (
        ROPE,
        SOFTMAX_ATTENTION,
        UNNORMALIZED_ATTENTION,
        LINEAR_ATTENTION,
        RANDOM_FEATURES,
        RANDOM_PROJECTION,
        PERFORMER_ATTENTION,
        CLIP_LOSS,
        SIGLIP_LOSS,
        SELECTIVE_SCAN,
        DISCRETIZE,
        SSM_SCAN,
        SSM_KERNEL,
        FFT_CONVOLVE,
        S4D_KERNEL,
        S4_KERNEL,
    )
}
"""The operators of assay, by name."""
