"""torch as a second oracle, if it is installed: for distinct numbers, and for padding that it supports."""

import jax
import numpy as np
import pytest

import jpool

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(
    ("window", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), (5, 3, 2), (2, 3, 1), (4, 3, 2)]
)
def test_values_and_gradients_equal_those_of_torch(window, stride, padding, dilation, ceil_mode):
    rng = np.random.default_rng(0)
    for height, width in ((9, 10), (11, 9)):
        x = rng.permutation(2 * height * width).reshape(2, height, width).astype(np.float32)
        image = torch.tensor(x, requires_grad=True)
        expected = torch.nn.functional.max_pool2d(image, window, stride, padding, dilation, ceil_mode)
        ct = rng.integers(-9, 10, expected.shape).astype(np.float32)
        expected.backward(torch.tensor(ct))
        values, backward = jax.vjp(
            lambda x: jpool.max_pool(
                x, (window, window), stride, padding, window_dilation=dilation, ceil_mode=ceil_mode, channel_axis=0
            ),
            x,
        )
        np.testing.assert_array_equal(values, expected.detach().numpy(), strict=True)
        np.testing.assert_array_equal(backward(ct)[0], image.grad.numpy(), strict=True)
