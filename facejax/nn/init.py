"""Initialisers, named as in papers and their code."""

from __future__ import annotations

import flax.linen as nn

kaiming_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""He normal for ReLU by fan-out: PyTorch's kaiming_normal_(mode="fan_out")."""

torch_default = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")
"""PyTorch's default for convolution and linear weights: uniform within +-1 / sqrt(fan_in)."""
