"""What must hold: contracts, bounds, properties, diagnosis. Kernels are received as arguments, never imported."""

from __future__ import annotations

from assay.properties.contract import Operator
from assay.properties.projection import RANDOM_PROJECTION
from assay.properties.rope import ROPE


OPERATORS: dict[str, Operator] = {o.name: o for o in (ROPE, RANDOM_PROJECTION)}
"""The operators of assay, by name."""
