"""Statistics of gradients, compared with NumPy in float64, and with their expected values over many batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jpool

RNG = np.random.default_rng(0)
PARAMS = {"w": RNG.normal(size=(3, 2)), "b": RNG.normal(size=2)}
XS, YS = RNG.normal(size=(7, 3)), RNG.normal(size=(7, 2))


def loss(params, x, y):
    return jnp.square(jnp.tanh(x @ params["w"] + params["b"]) - y).sum()


def by_definition(xs, ys, params=PARAMS):
    """From the definition, in float64: example by example, with the whole covariance matrix."""
    losses, rows = [], []
    for x, y in zip(xs, ys, strict=True):
        h = np.tanh(x @ params["w"] + params["b"])
        error = 2 * (h - y) * (1 - h**2)
        losses.append(np.square(h - y).sum())
        rows.append(np.concatenate([error, np.outer(x, error).ravel()]))  # b before w, as in a dict
    rows = np.array(rows)
    trace = np.trace(np.cov(rows.T, ddof=1)) if len(rows) > 1 else np.nan
    signal = np.square(rows.mean(0)).sum() - trace / len(rows)
    mean = {"b": rows.mean(0)[:2], "w": rows.mean(0)[2:].reshape(3, 2)}
    return jpool.GradientStatistics(np.array(losses), np.square(rows).sum(1), mean, trace, signal, trace / signal)


def assert_close(actual, expected, rtol):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=rtol), actual, expected)


@pytest.mark.parametrize("microbatch_size", [1, 2, 3, 7, 100, None])
def test_statistics_equal_their_definition(microbatch_size):
    with jax.enable_x64(True):
        statistics = jpool.gradient_statistics(loss, microbatch_size=microbatch_size)(PARAMS, XS, YS)
        assert {leaf.dtype for leaf in jax.tree.leaves(statistics)} == {jnp.dtype("float64")}
        assert_close(statistics, by_definition(XS, YS), 1e-12)


@pytest.mark.parametrize("microbatch_size", [1, 2, 7])
def test_statistics_in_float32(microbatch_size):
    narrow = jax.tree.map(jnp.float32, (PARAMS, XS, YS))
    statistics = jpool.gradient_statistics(loss, microbatch_size=microbatch_size)(*narrow)
    assert_close(statistics, by_definition(XS, YS), 1e-5)


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float64])
@pytest.mark.parametrize("microbatch_size", [1, 2, 3, None])
def test_weights_leave_examples_out_even_if_they_are_nan(dtype, microbatch_size):
    kept = np.array([1, 0, 1, 1, 0, 0, 1], bool)
    xs = np.where(kept[:, None], XS, np.nan)
    with jax.enable_x64(True):
        statistics = jpool.gradient_statistics(loss, microbatch_size=microbatch_size)(
            PARAMS, xs, YS, weights=kept.astype(dtype)
        )
        expected = by_definition(XS[kept], YS[kept])
        assert_close(statistics[2:], expected[2:], 1e-12)
        for rows, expected_rows in zip(statistics[:2], expected[:2], strict=True):
            assert rows[~kept].tolist() == [0] * 3
            np.testing.assert_allclose(rows[kept], expected_rows, rtol=1e-12)


def test_weights_may_be_a_list():
    narrow = jax.tree.map(jnp.float32, (PARAMS, XS, YS))
    f = jpool.gradient_statistics(loss)
    statistics, expected = (
        f(*narrow, weights=weights) for weights in ([1, 0, 1, 1, 0, 0, 1], np.array([1, 0, 1, 1, 0, 0, 1]))
    )
    jax.tree.map(np.testing.assert_array_equal, statistics, expected)


def test_one_example_has_no_variance_and_no_examples_have_no_mean():
    f = jpool.gradient_statistics(loss)
    for weights in (None, np.eye(1)[0]):
        of_one_example = f(PARAMS, XS[:1], YS[:1], weights=weights)
        assert np.isnan(of_one_example[3:]).all()
        assert np.isfinite(of_one_example.mean["w"]).all()
    of_one_example = f(PARAMS, XS, YS, weights=np.eye(7)[2])
    assert np.isnan(of_one_example[3:]).all()
    of_no_examples = f(PARAMS, XS, YS, weights=np.zeros(7))
    assert np.isnan(np.concatenate([of_no_examples.mean["b"], of_no_examples[3:]])).all()
    assert of_no_examples.losses.tolist() == [0] * 7


def test_equal_examples_have_no_noise():
    statistics = jpool.gradient_statistics(lambda w, x: w @ x)(jnp.zeros(2), jnp.tile(jnp.array([3.0, 4.0]), (5, 1)))
    assert (statistics.noise_trace, statistics.signal, statistics.noise_scale) == (0, 25, 0)
    assert statistics.squared_norms.tolist() == [25] * 5


def test_the_signal_may_be_negative():
    statistics = jpool.gradient_statistics(lambda w, x: w * x)(jnp.float32(0), jnp.array([-1.0, 1.0]))
    assert (statistics.noise_trace, statistics.signal, statistics.noise_scale) == (2, -1, -2)


def test_trace_and_signal_are_unbiased():
    """Batches of 3 from a known distribution of gradients: means of 20,000 draws are within 4 standard errors."""
    truth, deviations = np.array([0.5, -0.25, 1.0]), np.array([1.0, 2.0, 0.5])
    draws = truth + deviations * np.random.default_rng(1).normal(size=(20_000, 3, 3))
    with jax.enable_x64(True):
        f = jpool.gradient_statistics(lambda w, x: w @ x, microbatch_size=2)
        statistics = jax.jit(jax.vmap(lambda xs: f(jnp.zeros(3), xs)))(jnp.asarray(draws))
        statistics = jax.tree.map(np.asarray, statistics)
    for estimates, expected in ((statistics.noise_trace, (deviations**2).sum()), (statistics.signal, (truth**2).sum())):
        standard_error = np.std(estimates) / np.sqrt(len(draws))
        assert standard_error < 0.05
        assert abs(np.mean(estimates) - expected) < 4 * standard_error
    biased = np.square(draws.mean(1)).sum(1).mean()  # what signal would be without its correction
    assert biased - (truth**2).sum() > 1


def test_bfloat16_gradients_add_up_in_float32():
    xs = jnp.ones((1000, 2), jnp.bfloat16)
    statistics = jpool.gradient_statistics(lambda w, x: w @ x, microbatch_size=7)(jnp.zeros(2, jnp.bfloat16), xs)
    assert statistics.mean.dtype == jnp.bfloat16
    assert statistics.mean.tolist() == [1, 1]
    assert statistics.squared_norms.dtype == jnp.float32
    assert statistics.noise_trace == 0


def test_one_compilation_per_shape_of_a_batch_with_trees_keys_and_labels():
    traces = []

    def noisy(w, example):
        traces.append(1)
        noise = jax.random.normal(example["key"], w.shape)
        return (w * (example["x"] + noise)).sum() * example["label"].astype(w.dtype)

    f = jpool.gradient_statistics(noisy, microbatch_size=2)
    batch = {"key": jax.random.split(jax.random.key(0), 5), "x": jnp.ones((5, 2)), "label": jnp.arange(5)}
    statistics = f(jnp.ones(2), batch)
    for _ in range(2):
        f(jnp.ones(2), batch)
    after_first_shape = len(traces)
    assert after_first_shape <= 2  # one for the loop, one for the remaining example
    expected = jpool.gradient_statistics(noisy)(jnp.ones(2), batch)
    assert_close(statistics, expected, 1e-5)
    f(jnp.ones(2), jax.tree.map(lambda leaf: leaf[:4], batch))
    assert len(traces) > after_first_shape


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "2"])
def test_a_microbatch_size_that_is_not_a_positive_int_is_refused(size):
    error = ValueError if type(size) is int else TypeError
    with pytest.raises(
        error, match=rf"gradient_statistics: microbatch_size must be an int >= 1, or None .*got {size!r}"
    ):
        jpool.gradient_statistics(loss, microbatch_size=size)


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        (np.ones(6), r"weights must have shape \(7,\).*got shape \(6,\)"),
        (np.ones((7, 1)), r"weights must have shape \(7,\).*got shape \(7, 1\)"),
        (np.array([1, 1, 0.5, 1, 1, 1, 1]), r"weights must be 1 for an example and 0 for padding; got \[0\.5\]"),
        (np.full(7, np.nan), r"weights must be 1 .*got \[nan\]"),
    ],
)
def test_weights_that_are_not_zeros_and_ones_are_refused(weights, text):
    with pytest.raises(ValueError, match=f"gradient_statistics: {text}"):
        jpool.gradient_statistics(loss)(PARAMS, XS, YS, weights=weights)


def test_empty_batches_and_a_loss_that_is_not_a_function_are_refused():
    with pytest.raises(ValueError, match="gradient_statistics: the mean of no examples is undefined"):
        jpool.gradient_statistics(loss)(PARAMS, XS[:0], YS[:0])
    with pytest.raises(ValueError, match="gradient_statistics: every array of the batch must have the examples"):
        jpool.gradient_statistics(loss)(PARAMS)
    with pytest.raises(TypeError, match="gradient_statistics: loss must be a function"):
        jpool.gradient_statistics(None)
