"""Statistics of gradients, compared with NumPy in float64, and with their expected values over all batches."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared.regression import assert_close

import jpool

pytestmark = pytest.mark.usefixtures("compiled_quickly")
RNG = np.random.default_rng(0)
PARAMS = {"w": RNG.normal(size=(3, 2)), "b": RNG.normal(size=2)}
XS, YS = RNG.normal(size=(7, 3)), RNG.normal(size=(7, 2))
KEPT = np.array([1, 0, 1, 1, 0, 0, 1], bool)


def loss(params, x, y):
    return jnp.square(jnp.tanh(x @ params["w"] + params["b"]) - y).sum()


def by_definition(xs, ys):
    """From the definition, in float64: example by example, with the whole covariance matrix."""
    losses, rows = [], []
    for x, y in zip(xs, ys, strict=True):
        h = np.tanh(x @ PARAMS["w"] + PARAMS["b"])
        error = 2 * (h - y) * (1 - h**2)
        losses.append(np.square(h - y).sum())
        rows.append(np.concatenate([error, np.outer(x, error).ravel()]))  # b before w, as in a dict
    rows = np.array(rows)
    trace = np.trace(np.cov(rows.T, ddof=1))
    signal = np.square(rows.mean(0)).sum() - trace / len(rows)
    mean = {"b": rows.mean(0)[:2], "w": rows.mean(0)[2:].reshape(3, 2)}
    return jpool.GradientStatistics(np.array(losses), np.square(rows).sum(1), mean, trace, signal, trace / signal)


@pytest.mark.parametrize(("microbatch_size", "dtype", "weights"), [
    (None, np.float64, None),
    (None, np.float64, np.int32),
    (1, np.float64, bool),
    (2, np.float32, None),
    (3, np.float64, np.float64),
    (100, np.float64, None),
])  # fmt: skip
def test_statistics_equal_their_definition_and_weights_leave_examples_out(microbatch_size, dtype, weights):
    """What is left out is nan."""
    kept = np.ones(7, bool) if weights is None else KEPT
    options = {} if weights is None else {"weights": kept.astype(weights)}
    arrays = jax.tree.map(lambda leaf: leaf.astype(dtype), (PARAMS, np.where(kept[:, None], XS, np.nan), YS))
    with jax.enable_x64(dtype == np.float64):
        statistics = jpool.gradient_statistics(loss, microbatch_size=microbatch_size)(*arrays, **options)
    assert {leaf.dtype for leaf in jax.tree.leaves(statistics)} == {np.dtype(dtype)}
    expected, rtol = by_definition(XS[kept], YS[kept]), 1e-12 if dtype == np.float64 else 1e-5
    assert_close(statistics[2:], expected[2:], rtol)
    for rows, expected_rows in zip(statistics[:2], expected[:2], strict=True):
        np.testing.assert_allclose(np.asarray(rows)[kept], expected_rows, rtol=rtol)
        assert not np.asarray(rows)[~kept].any()


def test_one_example_has_no_variance_and_no_examples_have_no_mean():
    f = jpool.gradient_statistics(loss)
    for of_one_example in (f(PARAMS, XS[:1], YS[:1]), f(PARAMS, XS, YS, weights=np.eye(7)[2])):
        assert np.isnan(of_one_example[3:]).all()
        assert np.isfinite(of_one_example.mean["w"]).all()
    of_no_examples = f(PARAMS, XS, YS, weights=np.zeros(7))
    assert np.isnan(np.concatenate([of_no_examples.mean["b"], of_no_examples[3:]])).all()
    assert of_no_examples.losses.tolist() == [0] * 7


def test_trace_and_signal_are_unbiased():
    """Their means over all batches of two, drawn from three gradients, are those of the whole distribution."""
    gradients = np.array([[3, 4], [-1, 0], [1, 0]], np.float32)
    f = jpool.gradient_statistics(lambda w, x: w @ x)
    batches = list(product(range(3), repeat=2))
    statistics = {batch: f(np.zeros(2, np.float32), gradients[list(batch)]) for batch in batches}
    traces, signals = ([getattr(one, name) for one in statistics.values()] for name in ("noise_trace", "signal"))
    np.testing.assert_allclose(np.mean(traces), np.trace(np.cov(gradients.T, ddof=0)), rtol=1e-6)
    np.testing.assert_allclose(np.mean(signals), np.square(gradients.mean(0)).sum(), rtol=1e-6)
    assert statistics[0, 0][3:] == (0, 25, 0)  # equal examples have no noise
    assert statistics[1, 2][3:] == (2, -1, -2)  # the signal may be negative


def test_bfloat16_gradients_add_up_in_float32():
    w, xs = np.zeros(2, jnp.bfloat16), np.ones((1000, 2), jnp.bfloat16)
    statistics = jpool.gradient_statistics(lambda w, x: w @ x, microbatch_size=7)(w, xs)
    assert statistics.mean.dtype == jnp.bfloat16
    assert statistics.mean.tolist() == [1, 1]
    assert statistics.squared_norms.dtype == jnp.float32
    assert statistics.noise_trace == 0


def test_a_batch_of_trees_keys_and_labels_is_compiled_once():
    traces = []

    def noisy(w, example):
        traces.append(1)
        noise = jax.random.key_data(example["key"])[1].astype(w.dtype)
        return (w * (example["x"] + noise)).sum() * example["label"].astype(w.dtype)

    f = jpool.gradient_statistics(noisy, microbatch_size=2)
    xs, numbers = np.ones((5, 2), np.float32), np.arange(10, dtype=np.uint32).reshape(5, 2)
    batch = {"key": jax.random.wrap_key_data(numbers), "x": xs, "label": np.arange(5)}
    for _ in range(2):
        statistics = f(np.ones(2, np.float32), batch)
    assert len(traces) <= 2  # one for the loop, one for the remaining example
    gradients = (xs + numbers[:, 1:]) * np.arange(5)[:, None]
    np.testing.assert_array_equal(statistics.mean, gradients.mean(0))
    np.testing.assert_array_equal(statistics.squared_norms, np.square(gradients).sum(1))
