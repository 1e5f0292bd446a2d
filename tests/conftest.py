"""Shared fixtures. Tests that need the offline data skip, with the reason, where it is absent."""

import os
from pathlib import Path

import pytest
import torch

SHARED = Path(os.environ.get("XAIBENCH_SHARED", Path(__file__).parent.parent.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of offline data and weights (`data/`, `models/`)."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the offline data folder is absent (set XAIBENCH_SHARED)")
    return SHARED


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
