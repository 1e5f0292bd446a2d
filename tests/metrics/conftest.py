"""What the tests of metrics share, as fixtures."""

import pytest
import torch

from .helpers import batch_for, calls, convnet, linear, scored, take

__all__ = ["batch_for", "calls", "convnet", "linear", "scored", "take"]


@pytest.fixture
def figure_11() -> tuple[torch.Tensor, torch.Tensor]:
    """Three maps [3,16,16] of the InputIBA thesis (Khakzar, figure 11) and the object, a quarter of the image.

    a: 1 on the object and 0 outside; b: 1 and 0.25; c: 0.25 and 0.
    """
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[4:12, 4:12] = True
    maps = torch.stack(
        [torch.where(mask, inside, outside) for inside, outside in ((1.0, 0.0), (1.0, 0.25), (0.25, 0.0))]
    )
    return maps, mask
