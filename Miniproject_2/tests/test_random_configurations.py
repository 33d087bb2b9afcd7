"""Both convolutions against torch on configurations drawn at random, with all options together."""

import pytest
import torch

pytest.importorskip("hypothesis", reason="development extra")
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from Miniproject_2 import model as ours
from Miniproject_2.tests.oracle import compare, our_convolution

pairs = {
    "kernel_size": st.tuples(st.integers(1, 5), st.integers(1, 5)),
    "stride": st.tuples(st.integers(1, 4), st.integers(1, 4)),
    "padding": st.tuples(st.integers(0, 3), st.integers(0, 3)),
    "dilation": st.tuples(st.integers(1, 3), st.integers(1, 3)),
}
sizes = st.tuples(st.integers(1, 3), st.integers(1, 17), st.integers(1, 17))
counts = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))


@given(**pairs, size=sizes, count=counts, bias=st.booleans(), single=st.booleans())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_convolution(size, count, single, **options):
    (n, h, w), (inputs, outputs, groups) = size, count
    options |= {"in_channels": inputs * groups, "out_channels": outputs * groups, "groups": groups}
    block = ours.Conv2d(**options)
    assume(min(block.window.positions((h, w))) > 0)
    dtype = torch.float32 if single else torch.float64
    compare(block, torch.nn.Conv2d(**options), n, inputs * groups, h, w, dtype=dtype)


@given(
    **pairs,
    size=sizes,
    count=counts,
    bias=st.booleans(),
    single=st.booleans(),
    data=st.data(),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_transposed_convolution(size, count, single, data, **options):
    (n, h, w), (inputs, outputs, groups) = size, count
    options |= {"in_channels": inputs * groups, "out_channels": outputs * groups, "groups": groups}
    limits = [max(s, d) - 1 for s, d in zip(options["stride"], options["dilation"], strict=True)]
    options["output_padding"] = tuple(data.draw(st.integers(0, limit)) for limit in limits)
    block = our_convolution(torch.nn.ConvTranspose2d, **options)
    covered = block.window.covered((h, w))
    assume(all(c > 2 * p for c, p in zip(covered, options["padding"], strict=True)))
    dtype = torch.float32 if single else torch.float64
    compare(block, torch.nn.ConvTranspose2d(**options), n, inputs * groups, h, w, dtype=dtype)
