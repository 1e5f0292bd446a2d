"""The linear imputer beside Quantus' copy of the authors' code, without noise."""

import numpy as np
import pytest
import torch

from xaibench.perturb.imputer import impute

perturb = pytest.importorskip("quantus.functions.perturb_func")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("blocks", [False, True])
def test_equal_without_noise(share, blocks):
    images = torch.randn(2, 3, 33, 29, dtype=torch.float64)
    order = torch.rand(2, 33 * 29)
    if blocks:
        order = torch.nn.functional.interpolate(torch.rand(2, 1, 5, 5), (33, 29)).flatten(1) + 1e-3 * order
    removed = order.argsort(1)[:, : round(share * 33 * 29)]
    masks = torch.zeros(2, 33 * 29, dtype=torch.float64).scatter_(1, removed, 1.0).view(2, 1, 33, 29)
    expected = [
        perturb.noisy_linear_imputation(image.numpy(), indices.sort().values.numpy(), noise=0.0)
        for image, indices in zip(images, removed)
    ]
    np.testing.assert_allclose(impute(images, masks), expected, rtol=0, atol=1e-8)
    np.testing.assert_allclose(impute(images.float(), masks.float()), expected, rtol=0, atol=1e-4)
