"""torch as a second oracle, if it is installed: for distinct numbers, and for padding that it supports."""

import jax
import numpy as np
import pytest

import jpool

torch = pytest.importorskip("torch")


pytestmark = pytest.mark.usefixtures("compiled_quickly")
CASES = [  # height and width, window, stride, padding, dilation, ceil_mode; every two values of the last three columns
    ((9, 10), 2, 2, 0, 1, False),
    ((9, 10), 2, 2, 0, 2, True),
    ((11, 9), 3, 2, 1, 1, True),
    ((11, 9), 3, 1, 1, 2, False),
    ((9, 10), 5, 3, 2, 1, True),
    ((11, 9), 5, 3, 2, 2, True),
    ((9, 10), 2, 3, 1, 1, True),  # a last window that would begin in the padding
    ((11, 9), 2, 3, 1, 2, False),
    ((9, 10), 4, 3, 2, 2, True),
]


@pytest.mark.parametrize(("shape", "window", "stride", "padding", "dilation", "ceil_mode"), CASES)
def test_values_and_gradients_equal_those_of_torch(shape, window, stride, padding, dilation, ceil_mode):
    rng = np.random.default_rng(0)
    x = rng.permutation(2 * shape[0] * shape[1]).reshape(2, *shape).astype(np.float32)
    image = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.max_pool2d(image, window, stride, padding, dilation, ceil_mode)
    ct = rng.integers(-9, 10, expected.shape).astype(np.float32)
    expected.backward(torch.tensor(ct))
    options = {"window_dilation": dilation, "ceil_mode": ceil_mode, "channel_axis": 0}

    def passes(x, ct):
        values, backward = jax.vjp(lambda x: jpool.max_pool(x, (window, window), stride, padding, **options), x)
        return values, backward(ct)[0]

    values, gradient = jax.jit(passes)(x, ct)
    np.testing.assert_array_equal(values, expected.detach().numpy(), strict=True)
    np.testing.assert_array_equal(gradient, image.grad.numpy(), strict=True)
