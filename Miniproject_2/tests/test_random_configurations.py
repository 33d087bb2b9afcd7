"""Both convolutions against torch on configurations drawn at random, with all options together."""

import pytest
import torch

from Miniproject_2.others.configurations import random_configurations
from Miniproject_2.tests.oracle import compare, our_convolution


@pytest.mark.parametrize(("dtype", "seed"), [(torch.float32, 1), (torch.float64, 2)])
def test_random_configurations_agree_with_torch(dtype, seed):
    seen = set()
    for layer, options, (n, height, width) in random_configurations(150, seed):
        block = our_convolution(layer, **options)
        compare(block, layer(**options), n, options["in_channels"], height, width, dtype=dtype)
        seen.add(layer)
    assert seen == {torch.nn.Conv2d, torch.nn.ConvTranspose2d}
