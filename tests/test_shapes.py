"""The shapes in the signatures of the solvers are those of the arrays that go in and come out."""

import types
import typing
from typing import Any

import jax.numpy as jnp
import pytest
from beartype import beartype
from jaxtyping import Array, Float, TypeCheckError, jaxtyped

from mtljax import solvers

COSINES, NORMS, ONES = jnp.eye(3), jnp.array([1.0, 2.0, 0.5]), jnp.ones(3)
CALLS = {
    "aligned_weights": ((COSINES, NORMS), {"scale": "min"}),
    "cagrad_combination": ((COSINES, NORMS, 0.4), {}),
    "cagrad_weights": ((COSINES, NORMS, 0.4), {}),
    "dual_cone_weights": ((COSINES, NORMS, ONES), {}),
    "fairness_weights": ((COSINES, NORMS, 1.0), {}),
    "min_norm_weights": ((COSINES, NORMS), {}),
    "nonnegative_qp": ((COSINES, ONES), {}),
    "unit_solve": ((COSINES, ONES), {}),
    "upgrad_weights": ((COSINES, NORMS), {}),
}


def checked(name: str) -> Any:
    """A solver whose annotations are checked when it is called: at run time, jaxtyping is a matter of the tests."""
    function = getattr(solvers, name)
    function = getattr(function, "__wrapped__", function)
    names = {**function.__globals__, "Array": Array, "Float": Float}
    copy = types.FunctionType(function.__code__, names, name, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__annotations__ = typing.get_type_hints(function, globalns=names)
    return jaxtyped(typechecker=beartype)(copy)


def test_every_solver_that_takes_a_gramian_is_here():
    assert set(CALLS) == set(solvers.__all__) - {"finite", "normalised"}


@pytest.mark.parametrize("name", CALLS)
def test_the_annotated_shapes_hold_and_others_are_noticed(name):
    args, kwargs = CALLS[name]
    checked(name)(*args, **kwargs)
    with pytest.raises(TypeCheckError):
        checked(name)(args[0], jnp.ones(4), *args[2:], **kwargs)
