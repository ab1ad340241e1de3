"""Equations of a jaxpr replaced, also in the jaxprs inside it: of jit, scan, cond, custom_vjp, ...

A jaxpr is JAX's record of a computation: a list of equations, each of which applies a primitive to variables. A *rule*
maps an equation to the one that takes its place, which may be itself. It also sees which equation made each variable.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import jax

from jpool.jax_extensions import core

Rule = Callable[[Any, dict[Any, Any]], Any]


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations, also those inside others."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from equations(inner)


class Rewriter:
    """Applies a rule to all equations of a jaxpr. A jaxpr in which it replaces none is returned as it is.

    A jaxpr that is given again, such as that of a jitted function, becomes the same object as before, so that JAX
    finds the program that it has compiled.
    """

    def __init__(self, rule: Rule) -> None:
        """With a rule; nothing is applied yet."""
        self.rule = rule
        self._done: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    def __call__(self, part: Any) -> Any:
        """A jaxpr, or any other parameter of an equation."""
        if type(part) is tuple:
            parts = tuple(map(self, part))
            return parts if _differ(parts, part) else part
        if not isinstance(getattr(part, "jaxpr", part), core.Jaxpr):
            return part
        if part not in self._done:
            other = self._rewritten(part)
            self._done[part] = None if other is part else other  # a value that is its own key would never be freed
        return self._done[part] or part

    def _rewritten(self, jaxpr: Any) -> Any:
        if not isinstance(jaxpr, core.Jaxpr):  # with constants, which is another class in older versions
            inner = self(jaxpr.jaxpr)
            return jaxpr if inner is jaxpr.jaxpr else jaxpr.replace(jaxpr=inner)
        makers = {variable: equation for equation in jaxpr.eqns for variable in equation.outvars}
        eqns = [self._equation(equation, makers) for equation in jaxpr.eqns]
        return jaxpr.replace(eqns=eqns) if _differ(eqns, jaxpr.eqns) else jaxpr

    def _equation(self, equation: Any, makers: dict[Any, Any]) -> Any:
        if (other := self.rule(equation, makers)) is not equation:
            return other
        params = {name: self(value) for name, value in equation.params.items()}
        if not _differ(params.values(), equation.params.values()):
            return equation
        for name in {"jvp_jaxpr_fun", "fwd_jaxpr_thunk"} & params.keys():  # of custom_jvp and custom_vjp
            params[name] = _Traced(params[name], self)
        return equation.replace(params=params)


class _Traced:
    """The rule of a custom derivative, which JAX traces to a jaxpr when it is needed."""

    def __init__(self, traced: Any, rewriter: Rewriter) -> None:
        self.debug_info, self._traced, self._rewriter = traced.debug_info, traced, rewriter

    def call_wrapped(self, *zeros: Any) -> tuple[Any, ...]:
        jaxpr, *others = self._traced.call_wrapped(*zeros)
        return self._rewriter(jaxpr), *others


def _differ(new: Any, old: Any) -> bool:
    return any(one is not other for one, other in zip(new, old, strict=True))


def calling(function: Callable[..., Any], equation: Any, operands: Sequence[Any] | None = None) -> Any:
    """An equation that calls a function instead, of the same variables or of these."""
    invars = list(equation.invars if operands is None else operands)
    with jax.disable_jit(False), equation.ctx.manager:  # one call, whatever the user has set; the mesh of the equation
        (call,) = jax.make_jaxpr(jax.jit(function))(*(variable.aval for variable in invars)).eqns
    return call.replace(invars=invars, outvars=equation.outvars)
