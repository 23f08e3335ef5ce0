"""Tests of this folder run on an NVIDIA GPU, and skip where there is none: pytest tests/cuda"""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def gpu():
    """The device; every test of this folder needs it."""
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    return torch.device("cuda")
