"""m = max(a, b), and J_m is given: what are J_a and J_b?

J_x is the derivative of a loss J with respect to x. J_a = J_m if a >= b, else 0; J_b = J_m - J_a: the larger input
receives all of J_m. Where a = b there is no derivative; this rule is `ties="first"`, and `ties` selects other shares.
Everywhere else finite differences agree: for two numbers, and for every weight of a network of one or four maxima.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

import jpool
from experiments.common import command, style
from experiments.common.command import Size, claim
from experiments.digits import layers

RULES = {"first": (1.0, 0.0), "last": (0.0, 1.0), "split": (0.5, 0.5), "none": (0.0, 0.0)}  # shares of J_m where a = b
IN_WORDS = {"first": "all to a", "last": "all to b", "split": "half each", "none": "to neither"}
STEP, GAP = 1e-5, 1e-3  # of a difference; smallest gap between a and b, so that no step crosses the diagonal
SIDE = 7  # points along each axis of the plane
SPARE = 10  # inputs drawn in addition, because some are nearer to the diagonal


def maximum(pair: jax.Array, ties: str = "first") -> jax.Array:
    """The maximum of two numbers, the smallest possible pooling."""
    return jpool.max_pool(pair, (2,), channel_axis=None, ties=ties)[0]


def cost(m: jax.Array) -> jax.Array:
    """Any J would do. This one has J_m = 1 + m / 4, so that a wrong J_m is noticed."""
    return m + m**2 / 8


def sums(weights: layers.Params, x: jax.Array) -> jax.Array:
    """The weighted sums (3,) -> (units, 2), the a and b of every maximum."""
    return layers.dense("hidden")(weights, x).reshape(-1, 2)


def network(weights: layers.Params, x: jax.Array) -> jax.Array:
    """Every max(a, b), a linear output, a squared error: (3,) -> scalar."""
    return (layers.dense("out")(weights, jax.vmap(maximum)(sums(weights, x)))[0] - 1) ** 2


def differences(function: Callable[[jax.Array], jax.Array], at: jax.Array) -> jax.Array:
    """Central differences along every element of an array (n,): a derivative without any rule for ties."""
    return jax.vmap(lambda step: (function(at + step) - function(at - step)) / (2 * STEP))(STEP * jnp.eye(at.size))


class Gradients(NamedTuple):
    """What the picture shows."""

    plane: np.ndarray  # (N, 2), points of the plane of a and b
    shares: dict[str, np.ndarray]  # (N, 2), by rule: (J_a, J_b) / J_m
    error: float  # of finite differences, off the diagonal


def measure(seed: int, examples: int = 100) -> Gradients:
    """Checks everything in float64, in which differences are accurate to nine digits."""
    with jax.enable_x64(True):
        check_network("a network of one maximum", 1, seed, examples)
        check_network("a network of four maxima", 4, seed, examples)
        return check_plane()


def check_plane() -> Gradients:
    """Checks every rule bit for bit on a grid with the diagonal a = b."""
    line = jnp.linspace(-2, 2, SIDE)
    plane = jnp.stack(jnp.meshgrid(line, line), -1).reshape(-1, 2)
    a, b = plane.T
    j_m = jax.vmap(jax.grad(cost))(plane.max(1))[:, None]
    gradients = {}
    for ties, shares in RULES.items():
        gradient = jax.vmap(jax.grad(lambda pair, ties=ties: cost(maximum(pair, ties))))(plane)
        rule = jnp.where((a == b)[:, None], jnp.array(shares), jnp.stack([a > b, b > a], 1))
        equal = (gradient == rule * j_m).all()
        claim(f'ties="{ties}": J_a = J_m if a > b else 0, and where a = b, {IN_WORDS[ties]}', equal)
        gradients[ties] = np.asarray(gradient)
    slopes = jax.vmap(lambda pair: differences(lambda pair: cost(maximum(pair)), pair))(plane)
    off, on = (float(abs(slopes - gradients["split"])[at].max()) for at in (a != b, a == b))
    claim(f"finite differences agree off the diagonal, to {off:.0e}", off < 1e-9)
    claim(f'on the diagonal they step to both sides and give half each, like "split", to {on:.0e}', on < 1e-6)
    return Gradients(np.asarray(plane), {ties: g / np.asarray(j_m) for ties, g in gradients.items()}, off)


def check_network(name: str, units: int, seed: int, examples: int) -> None:
    """Compares the gradient of every weight with differences, for inputs where every a is farther from b than GAP."""
    weights_key, x_key = jax.random.split(jax.random.key(seed))
    weights = layers.init(weights_key, {"hidden": (3, 2 * units), "out": (units, 1)})
    x = jax.random.normal(x_key, (examples + SPARE, 3))
    gaps = abs(jnp.diff(jax.vmap(sums, (None, 0))(weights, x))).min((1, 2))
    x = x[gaps > GAP][:examples]
    flat, unravel = ravel_pytree(weights)
    loss = lambda flat, x: network(unravel(flat), x)  # noqa: E731
    _, gradients = jpool.per_example_value_and_grad(loss)(flat, x)
    slopes = jax.vmap(lambda x: differences(lambda flat: loss(flat, x), flat))(x)
    error = float(abs(gradients - slopes).max())
    claim(
        f"{name}, {len(x)} examples, {flat.size} weights and biases: finite differences agree to {error:.0e}",
        error < 1e-7,
    )


def picture(results: Gradients) -> Figure:
    """The plane of a and b for each rule: level lines of m, and the shares of J_m as an arrow."""
    figure = style.figure(9, 3.6)
    title = "m = max(a, b). Arrows: (J_a, J_b) / J_m, red where a = b. Grey lines: equal m."
    error = f"Off the diagonal a = b, finite differences agree to {results.error:.0e}."
    figure.suptitle(f"{title}\n{error}", fontsize=style.TITLE)
    a, b = results.plane.T
    fine, lines = np.linspace(-2.6, 2.6, 200), {"colors": "#00000033", "linewidths": 1, "linestyles": "solid"}
    arrows: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 2.2, "width": 0.011}
    for axes, (ties, shares) in zip(figure.subplots(1, 4, sharey=True), results.shares.items(), strict=True):
        axes.contour(fine, fine, np.maximum(*np.meshgrid(fine, fine)), 12, **lines)
        for at, colour in ((a != b, style.BLUE), (a == b, style.RED)):
            axes.plot(a[at], b[at], ".", color=colour, markersize=4)
            axes.quiver(a[at], b[at], *shares[at].T, color=colour, **arrows)
        axes.set_title(f'ties="{ties}"\na = b: {IN_WORDS[ties]}', fontsize=style.TITLE)
        axes.set(xlabel="a", aspect="equal", xlim=(-2.6, 2.8), ylim=(-2.6, 2.8))
    figure.axes[0].set_ylabel("b")
    return figure


main = command.experiment(__file__, __doc__, measure, picture, examples=Size("inputs of the networks", 1, 10_000))

if __name__ == "__main__":
    main()
