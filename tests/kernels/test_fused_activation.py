"""Linear layers with an activation against float64: on a GPU cuBLAS applies it in half precision,
so this file says more there (`python -m pytest tests/kernels`).
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ftjob.model.arch import Activation
from ftjob.model.layers import Linear, WeightFormat

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu", "relu"])
@pytest.mark.parametrize("weights", ["float", "int8"])
@pytest.mark.parametrize("biased", [True, False], ids=["biased", "plain"])
def test_the_activation_of_the_product(
    dtype: torch.dtype, activation: Activation, weights: WeightFormat, biased: bool
) -> None:
    made = torch.Generator().manual_seed(0)
    layer = Linear(64, 96, weights, (dtype, DEVICE), activation, bias=biased)
    codes = torch.randint(-127, 128, (96, 64), generator=made).float() / 512
    codes[:, 0] = 127 / 512  # int8 holds these weights exactly, and so does half precision
    bias = torch.randn(96, generator=made).to(DEVICE, dtype)
    with torch.inference_mode():
        layer.set_weight(codes.to(DEVICE, dtype if weights == "float" else torch.float32), None)
        if layer.bias is not None:
            layer.bias.copy_(bias)
        x = torch.randn(40, 64, generator=made).to(DEVICE, dtype)
        found = layer(x)
    product = x.double() @ codes.to(DEVICE).double().t() + (bias.double() if biased else 0.0)
    kind = "tanh" if activation == "gelu_tanh" else "none"
    wanted = product.relu() if activation == "relu" else F.gelu(product, approximate=kind)
    assert found.dtype == dtype
    assert bool((wanted.abs() > 1).any())
    limit = TOLERANCE[dtype]
    torch.testing.assert_close(found.double(), wanted, rtol=limit, atol=limit)
