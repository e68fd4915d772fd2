"""What is known of a program compiled for a machine, and how it is read from JSON."""

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from mtljax.planning.hlo import Buffer, Collective, Estimate, Product
from mtljax.planning.targets import Target

PyTree = Any
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Memory(NamedTuple):
    """Bytes of one device while the program runs; `aliased` results lie where donated arguments lay."""

    arguments: int
    outputs: int
    temporaries: int
    aliased: int
    code: int

    @property
    def total(self) -> int:
        """Bytes at the worst moment."""
        return self.arguments + self.outputs + self.temporaries + self.code - self.aliased


class Compiled(NamedTuple):
    """What is known of a program on a machine.

    All figures are of one device. `flops`, `bytes_accessed` and `transcendentals` are XLA's, which counts the body of a
    loop once, and None for GPUs; `products` and `bytes_moved` count rounds, on every machine.

    Attributes:
      target: the machine.
      fits: whether memory is enough, None where that is unknown.
      needed: bytes of memory, None if the compiler gave up without saying.
      memory: the parts of it, None if the compiler gave up.
      flops: operations.
      bytes_accessed: bytes that instructions read and write.
      transcendentals: exponentials and the like.
      estimate: the compiler's cycles; None for other than TPUs.
      collectives: what devices send each other.
      largest: the largest arrays; those that the compiler names if it gave up.
      products: products of matrices and convolutions.
      bytes_moved: bytes that instructions read from and write to memory.
      seconds: that compiling took.
      message: of the compiler, if it gave up for want of memory.
      text: the compiled program, if asked for.
    """

    target: Target
    fits: bool | None
    needed: int | None
    memory: Memory | None = None
    flops: float | None = None
    bytes_accessed: float | None = None
    transcendentals: float | None = None
    estimate: Estimate | None = None
    collectives: tuple[Collective, ...] = ()
    largest: tuple[Buffer, ...] = ()
    products: tuple[Product, ...] = ()
    bytes_moved: float = 0.0
    seconds: float = 0.0
    message: str = ""
    text: str | None = None


def from_json(target: Target, found: dict[str, Any], names: Sequence[str], module: str) -> Compiled:
    """What a child wrote, with the names of the arguments; `module` is the program before it was compiled."""
    largest = tuple(_named(Buffer(**each), names) for each in found["largest"])
    if "memory" not in found:
        largest = largest or _largest(module)
        return Compiled(target, False, found["needed"], largest=largest, message=found["message"])
    memory, costs, estimate = Memory(**found["memory"]), found["costs"], found["estimate"]
    return Compiled(
        target,
        # A TPU's compiler gives up where memory is short; a GPU's goes on.
        True if target.platform == "tpu" else None if target.memory is None else memory.total <= target.memory,
        memory.total,
        memory,
        costs["flops"],
        costs["bytes accessed"],
        costs["transcendentals"],
        Estimate(estimate["cycles"], tuple(estimate["unknown_loops"])) if estimate else None,
        tuple(_tuples(Collective, each) for each in found["collectives"]),
        largest,
        tuple(_tuples(Product, each) for each in found["products"]),
        found["bytes_moved"],
        found["seconds"],
        "",
        found["text"],
    )


def argument_names(fn: Callable[..., Any], args: Sequence[PyTree]) -> list[str]:
    """What the leaves of the arguments are called, "params['kernel']"."""
    try:
        known = [name for name, each in inspect.signature(fn).parameters.items() if each.kind in _POSITIONAL]
    except (TypeError, ValueError):
        known = []
    known += [f"args[{i}]" for i in range(len(known), len(args))]
    return [
        known[i] + jax.tree_util.keystr(path)
        for i, arg in enumerate(args)
        for path, _ in jax.tree_util.tree_leaves_with_path(arg)
    ]


def _named(buffer: Buffer, names: Sequence[str]) -> Buffer:
    """With an argument's own name: the compiled program has flat ones."""
    argument = re.fullmatch(r"args\[(\d+)\]", buffer.name)
    return buffer._replace(name=names[int(argument[1])]) if argument else buffer


def _tuples(kind: Callable[..., Any], fields: dict[str, Any]) -> Any:
    """A named tuple from JSON, which knows only lists."""

    def frozen(value: Any) -> Any:
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    return kind(**{name: frozen(value) for name, value in fields.items()})


def _largest(module: str) -> tuple[Buffer, ...]:
    """The largest array of a program that is not compiled yet, in which a fusion may avoid it, over all devices."""
    best = Buffer("", "", 0)
    for shape, dtype in dict.fromkeys(re.findall(r"tensor<((?:\d+x)+)(\w+)>", module)):
        sides = [int(side) for side in shape.rstrip("x").split("x")]
        bits = re.search(r"\d+", dtype)
        size = max(int(bits[0]) // 8, 1) if bits else 1
        for side in sides:
            size *= side
        if size > best.bytes:
            best = Buffer("before fusion", f"{dtype}[{','.join(map(str, sides))}]", size)
    return (best,) if best.bytes else ()
