"""What the jaxpr of the linearized losses tells before anything is differentiated."""

import functools
import math
import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from jax.extend.core import Literal
from jax.interpreters import partial_eval


def leaf_dependence(jaxpr: Any) -> list[tuple[int, ...]]:
    """For each input of the jaxpr of a linear map, the indices of the outputs that depend on it.

    Read off linearized losses: they hold no side effects (a jax.debug.print of a head's output is no dependence), and
    nothing behind stop_gradient.
    """
    outputs = range(len(jaxpr.outvars))
    used = [partial_eval.dce_jaxpr(jaxpr, [j == k for j in outputs])[1] for k in outputs]
    return [tuple(k for k in outputs if used[k][i]) for i in range(len(jaxpr.invars))]


def written_out(jaxpr: Any) -> int:
    """Operations of the backward passes of all outputs, each with what it depends on alone."""
    outputs = range(len(jaxpr.outvars))
    return sum(_operations(partial_eval.dce_jaxpr(jaxpr, [j == k for j in outputs])[0]) for k in outputs)


def _operations(jaxpr: Any) -> int:
    return sum(1 + sum(map(_operations, _inner(equation))) for equation in jaxpr.eqns)


def contains_convolution(jaxpr: Any) -> bool:
    """Whether a jaxpr, or one inside it, convolves."""
    return _contains(jaxpr, "conv_general_dilated")


def contains_custom_vjp(jaxpr: Any) -> bool:
    """Whether linearized losses, or a loop or branch inside, have a custom_vjp: they can be transposed, not run."""
    return _contains(jaxpr, "custom_lin")


def _contains(jaxpr: Any, primitive: str) -> bool:
    return any(
        equation.primitive.name == primitive or any(_contains(inner, primitive) for inner in _inner(equation))
        for equation in jaxpr.eqns
    )


def _inner(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        for inner in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield inner


class _Operation(NamedTuple):
    """One equation, those of inner functions written out."""

    name: str
    inputs: tuple[tuple[int, int], ...]  # number and size of the variables that carry tangents
    outputs: tuple[int, ...]
    size: int  # of the largest output
    shapes: tuple[tuple[int, ...], ...]  # of all inputs, constants included, and outputs


class _Program(NamedTuple):
    """The operations that carry tangents, in order."""

    operations: list[_Operation]
    leaves: tuple[int, ...]
    losses: tuple[int | None, ...]


_WRITTEN_OUT = ("pjit", "jit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "custom_jvp_call")


def _program(jaxpr: Any) -> _Program:
    operations: list[_Operation] = []
    counter = iter(range(1 << 62))

    def run(jaxpr: Any, arguments: Sequence[int | None]) -> list[int | None]:
        numbers: dict[Any, int | None] = dict(zip(jaxpr.invars, arguments, strict=True))

        def number(atom: Any) -> int | None:
            return None if isinstance(atom, Literal) else numbers.get(atom)

        for equation in jaxpr.eqns:
            inputs = [number(atom) for atom in equation.invars]
            if all(i is None for i in inputs):
                continue
            inner = list(_inner(equation))
            if equation.primitive.name in _WRITTEN_OUT and len(inner) == 1:
                results = run(inner[0], inputs)
            else:
                results = [next(counter) for _ in equation.outvars]
                shapes = [tuple(getattr(a.aval, "shape", ())) for a in (*equation.invars, *equation.outvars)]
                carried = zip(inputs, shapes, strict=False)
                operations.append(
                    _Operation(
                        equation.primitive.name,
                        tuple((i, math.prod(shape)) for i, shape in carried if i is not None),
                        tuple(results),
                        max(map(math.prod, shapes[len(inputs) :])),
                        tuple(shapes),
                    )
                )
            numbers.update(zip(equation.outvars, results, strict=True))
        return [number(atom) for atom in jaxpr.outvars]

    leaves = tuple(next(counter) for _ in jaxpr.invars)
    return _Program(operations, leaves, tuple(run(jaxpr, leaves)))


# Operations on one tangent that leave its numbers as they are, and those that do not mix its coordinates either.
_RESHAPING = ("convert_element_type", "reshape", "transpose", "squeeze", "expand_dims", "copy", "copy_p")
_ELEMENTWISE = (*_RESHAPING, "mul", "div", "neg", "add", "add_any", "sub", "reduce_sum", "select_n", "slice")


def repeated_leaves(jaxpr: Any, leaf_tasks: Sequence[tuple[int, ...]]) -> list[int]:
    """The parameters that enter one alike product for each task that reads them: a trunk run anew for every task.

    Args:
      jaxpr: of the linearized losses.
      leaf_tasks: for each leaf, the losses that depend on it.

    Returns:
      Indices of the leaves.
    """
    program = _program(jaxpr)
    reached: dict[int, int] = defaultdict(int)  # variable: the losses it reaches, as bits
    for k, loss in enumerate(program.losses):
        if loss is not None:
            reached[loss] |= 1 << k
    for operation in reversed(program.operations):
        for i, _ in operation.inputs:
            reached[i] |= _any_of(reached, operation.outputs)
    leaf_of = {number: i for i, number in enumerate(program.leaves)}
    products: dict[tuple[int, Any], list[int]] = defaultdict(list)
    for operation in program.operations:
        tasks = _any_of(reached, operation.outputs)
        for i in {i for i, _ in operation.inputs} & leaf_of.keys():
            if operation.name in _RESHAPING:
                leaf_of[operation.outputs[0]] = leaf_of[i]
            elif operation.name not in _ELEMENTWISE and tasks:
                products[leaf_of[i], (operation.name, operation.shapes)].append(tasks)
    readers = [sum(1 << k for k in tasks) for tasks in leaf_tasks]
    return sorted(
        {
            leaf
            for (leaf, _), each in products.items()
            if len(each) > 1 and all(tasks.bit_count() == 1 for tasks in each) and _union(each) == readers[leaf]
        }
    )


def leaves_of_common_terms(jaxpr: Any) -> list[int]:
    """The parameters that only a term in every loss, such as an L2 penalty, makes shared.

    Such a term reads a parameter coordinate by coordinate, without meeting an example. A leaf is one of these when
    every loss reads it so, and exactly one loss reads it in another way too, beside a trunk that several read.
    """
    program = _program(jaxpr)
    losses = [loss for loss in program.losses if loss is not None]
    if len(losses) < max(2, len(program.losses)):
        return []
    alone: dict[int, int] = defaultdict(int)  # variable: the leaves it reads coordinate by coordinate, as bits
    mixed: dict[int, int] = defaultdict(int)  # variable: the leaves it reads in another way
    for i, number in enumerate(program.leaves):
        alone[number] = 1 << i
    for operation in program.operations:
        name, size = operation.name, operation.size
        for i, input_size in operation.inputs:
            keeps = name == "concatenate" or (name == "dot_general" and size == 1)
            keeps |= name in (*_ELEMENTWISE, "broadcast_in_dim") and size <= input_size
            for output in operation.outputs:
                alone[output] |= alone[i] if keeps else 0
                mixed[output] |= mixed[i] if keeps else mixed[i] | alone[i]
    readers = [sum(mixed[loss] >> i & 1 for loss in losses) for i in range(len(program.leaves))]
    if max(readers, default=0) < 2:  # no trunk, so no heads
        return []
    return [i for i, count in enumerate(readers) if count == 1 and all(alone[loss] >> i & 1 for loss in losses)]


def _any_of(bits: dict[int, int], variables: tuple[int, ...]) -> int:
    return _union(bits[i] for i in variables)


def _union(masks: Iterable[int]) -> int:
    return functools.reduce(operator.or_, masks, 0)
