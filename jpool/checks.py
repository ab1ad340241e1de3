"""Checks of arguments that all public functions share. No jax in this module.

One policy for every function: an argument of the wrong kind is a TypeError, one of the right kind with a wrong value is
a ValueError. Both name the function and the argument, show the value, and say what was expected and what to do.
"""

from numbers import Integral
from typing import Any

import numpy as np


def is_int(value: Any) -> bool:
    """Python's and NumPy's integers, but not bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def positive_int(function: str, argument: str, value: Any, otherwise: str = "") -> int:
    """An int >= 1; `otherwise` names what else the function accepts, for the error text."""
    if not is_int(value):
        raise TypeError(f"{function}: {argument} must be an int >= 1{otherwise}; got {shown(value)}.")
    if value < 1:
        raise ValueError(f"{function}: {argument} must be an int >= 1{otherwise}; got {value}.")
    return int(value)


def check_flag(function: str, argument: str, value: Any) -> None:
    """True or False, Python's or NumPy's."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{function}: {argument} must be True or False; got {shown(value)}.")


def check_word(function: str, argument: str, value: Any, words: tuple[str, ...], advice: str = "") -> None:
    """One of `words`; `advice` ends the error text."""
    expected = f"{function}: {argument} must be one of {', '.join(map(repr, words))}; got "
    if not isinstance(value, str):
        raise TypeError(f"{expected}{shown(value)}.")
    if value not in words:
        raise ValueError(f"{expected}{value!r}.{advice}")


def shown(value: Any) -> str:
    """The value and its type for an error text, with advice if it is an array: arguments must be Python values."""
    text = f"{value!r} of type {type(value).__name__}"
    if type(value).__module__ == "numpy":
        text += " (use Python numbers, tuples and strings)"
    elif hasattr(value, "dtype") and hasattr(value, "shape"):
        text += " (it must be known before tracing: under jax.jit close over it, or name it in static_argnames)"
    return text
