"""Plans of a training step: the engines side by side on a machine, the largest batch, what "auto" would choose."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtljax.errors import CompilerError
from mtljax.gradients import MODES, SplitLosses, explain, value_and_grad
from mtljax.gradients.backend import Backend, assumed
from mtljax.planning.compiler import Compiled, compile_for
from mtljax.planning.layout import device_bytes, find_batch, lay_out, like_params, resized
from mtljax.planning.roofline import roofline
from mtljax.planning.targets import Target, parse

PyTree = Any
SUMMED = "summed loss"
AS_GIVEN = "as given"
REUSED = "weights reused"
_TRIES = 6  # compilations in search of the largest batch
_CLOSE = 1.05  # batches that differ by less are not told apart


class Job(NamedTuple):
    """One program to compile.

    Attributes:
      fn: the function.
      args: its arguments, or their shapes.
      donate: which it may overwrite.
      mesh: sides of the mesh, None for one device or one side of all.
      specs: how arguments lie on it, None on one device.
      out_specs: how results lie on it.
      parts: bytes of a device by what they hold, of the arguments.
      choice: how the gradients are computed and why; "" where nothing is chosen.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    donate: tuple[int, ...] = ()
    mesh: Mapping[str, int] | None = None
    specs: Sequence[Any] | None = None
    out_specs: Any = None
    parts: Mapping[str, int] = {}
    choice: str = ""


class Row(NamedTuple):
    """What is known of one way to make a step.

    Attributes:
      name: the summed loss, a mode, or the step as given.
      compiled: what its compilation tells, None where it cannot be made.
      choice: how the gradients are computed and why; or why the step cannot be made.
      parts: bytes of a device by what they hold, of the arguments.
      mesh: sides of the mesh that the devices form.
    """

    name: str
    compiled: Compiled | None
    choice: str
    parts: Mapping[str, int] = {}
    mesh: Mapping[str, int] = {}

    @property
    def seconds(self) -> float | None:
        """Of one step: a TPU compiler's estimate; for a GPU the least that arithmetic and memory allow."""
        found = self.compiled
        if found is None or not found.target.bandwidth or not found.target.peak_flops:
            return None
        if found.estimate is not None and found.target.clock:
            return found.estimate.cycles / found.target.clock
        if found.memory is None or found.target.platform == "tpu":
            return None
        return max(roofline(found.products, found.bytes_moved, found.target))


class Plan(NamedTuple):
    """What a step costs on a machine; printed, it is a table.

    Attributes:
      target: the machine.
      batch: examples a step, over all devices; None where nobody said which arguments hold the batch.
      rows: the ways to make the step.
      largest_batch: the largest that fits, for the row "auto" or the step as given; None where not looked for.
      steps: of the whole run; None where unknown.
      solve_every: steps between those that solve for weights.
    """

    target: Target
    batch: int | None
    rows: tuple[Row, ...]
    largest_batch: int | None = None
    steps: int | None = None
    solve_every: int = 1

    @property
    def seconds(self) -> float | None:
        """Of a mean step of the row "auto", or the last: one of `solve_every` solves, the others reuse weights."""
        by_name = {row.name: row.seconds for row in self.rows if row.compiled is not None}
        reused = by_name.pop(REUSED, None)
        full = by_name.get("auto", next(reversed(by_name.values()), None))
        if full is None or reused is None:
            return full
        return (full + (self.solve_every - 1) * reused) / self.solve_every

    def __str__(self) -> str:
        from mtljax.planning.table import text

        return text(self)


class Blocks(NamedTuple):
    """What a block of cells in one program costs, by how many cells.

    Attributes:
      compiled: a step of a block, by the number of cells in it.
    """

    compiled: dict[int, Compiled]


def plan(
    fn: Callable[..., Any],
    args: Sequence[PyTree],
    *,
    target: str,
    method: optax.GradientTransformation | None = None,
    optimizer: optax.GradientTransformation | None = None,
    modes: Sequence[str] = ("auto",),
    batch_argnums: Sequence[int] = (),
    mesh: Mapping[str, int] | None = None,
    specs: Sequence[PyTree] | None = None,
    donate: Sequence[int] = (),
    largest_batch: bool = False,
) -> Plan:
    """What a training step costs on a machine that need not be there: memory, estimated time, traffic.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> losses_fn = lambda p, x: {"left": jnp.mean((x @ p) ** 2), "right": jnp.mean(jnp.abs(x @ p))}
    >>> planned = mtl.plan(losses_fn, (jnp.ones(8), jnp.ones((16, 8))), target="cpu", method=mtl.pcgrad())
    >>> [row.name for row in planned.rows]
    ['summed loss', 'auto']

    The compiler of the machine does the work: `pip install "mtljax[tpu]"` or `"mtljax[cuda]"`, no device needed.
    Nothing is run. Loops of a length known only as the program runs count as one round, and what devices send each
    other is told in bytes, not in time.

    Args:
      fn: losses, as in `task_gradients`: `losses_fn(params, *args)` returns a dict of losses, or a pair of that and an
        auxiliary output; or a step of your own, whatever it returns.
      args: its arguments, or their shapes (`jax.ShapeDtypeStruct`).
      target: the machine: "v5e:4x4", "v5p:2x2x1", "v6e:8x8", "h100", "h100x8", "a100", "cpu", "cpux4".
      method: for losses, the method; None for the plain sum alone.
      optimizer: for losses, what comes behind it; None for `optax.adam(1e-3)`.
      modes: for losses, the engines to compare, "auto" among them or not; ("all",) for every one.
      batch_argnums: positions of the arguments that hold the batch along their first axis, for `largest_batch` and for
        spreading it over several devices. For losses () means those of all but the parameters whose first axis has the
        most common length.
      mesh: for several devices, their layout, {"data": 4, "model": 2}; None for one side "devices".
      specs: how each argument lies on it, `PartitionSpec`s as in jit; None for whole copies of all but the batch, which
        is cut along its first axis.
      donate: for a step, positions of arguments whose memory it may take.
      largest_batch: whether to look for the largest batch that fits, at the cost of a few more compilations.

    Returns:
      The plan.

    Raises:
      ValueError: on a machine, mode or mesh that does not exist, or a batch that cannot be cut for the devices.
      ModuleNotFoundError: if the compiler is not installed.
      CompilerError: if it refuses the program, or dies.
    """
    machine, shapes = parse(target), jax.eval_shape(lambda *values: values, *args)
    ways, sides = ways_of(modes), dict(mesh or {"devices": machine.devices})
    with on(machine):
        losses = _returns_losses(fn, shapes)
    asked = method is not None or optimizer is not None or ways != ("auto",)
    if losses is None and asked:
        raise ValueError(
            "plan: with a method, an optimizer or modes, fn must return a dict of scalar losses, or a pair of that and "
            "an auxiliary output; leave them out to plan a step as it is"
        )
    as_step = losses is None or (losses and not asked)  # ({name: number}, state) alone is a step of one's own
    if not as_step and donate:
        raise ValueError("plan: donate is for a step of your own; of losses, parameters and states are donated")
    batched, size = find_batch(shapes, batch_argnums, first=0 if as_step else 1)
    places = lay_out(shapes, specs, sides, batched, size) if machine.devices > 1 else None
    mesh_of = sides if places else None

    def held(arg: PyTree, i: int) -> int:
        return device_bytes(arg, places[i] if places else None, sides)

    if as_step:
        idle = machine.devices > 1 and specs is None and size is None
        note = "no argument holds the batch, so that every device does all the work: name it in batch_argnums"

        def as_given(name: str, batch: int | None) -> Job:
            del name
            every = resized(shapes, batched, size, batch)
            parts = {f"argument {i}": held(arg, i) for i, arg in enumerate(every)}
            return Job(fn, every, tuple(donate), mesh_of, places, parts=parts, choice=note if idle else "")

        return compare(machine, as_given, (AS_GIVEN,), size, largest_batch)

    rule = optax.identity() if method is None else method
    tx = optimizer or optax.adam(1e-3)
    has_aux = bool(losses)

    def step_of(name: str, batch: int | None) -> Job:
        params, *rest = resized(shapes, batched, size, batch)
        mode: Any = "loop" if name == SUMMED else name
        summed = name == SUMMED or method is None

        def total(p: PyTree, *values: Any) -> tuple[jax.Array, Any]:
            result = fn(p, *values)
            found, aux = result if has_aux else (result, None)
            return sum(map(_scalar, found.values()), jnp.zeros(())), aux

        gradient_fn = value_and_grad(fn, rule, mode=mode, has_aux=has_aux)
        init = (lambda p: ()) if summed else gradient_fn.init

        def step(p: PyTree, states: Any, *values: Any) -> Any:
            if summed:
                (_, aux), gradient = jax.value_and_grad(total, has_aux=True)(p, *values)
                method_state = ()
            else:
                (found, gradient), method_state = gradient_fn(p, states[0], *values)
                aux = found[1] if has_aux else None
            updates, opt_state = tx.update(gradient, states[1], p)
            return optax.apply_updates(p, updates), (method_state, opt_state), aux

        states = jax.eval_shape(lambda p: (init(p), tx.init(p)), params)
        where = None
        if places:
            where = [places[0], like_params(states, params, places[0]), *places[1:]]
        choice = "" if summed else explain(fn, params, *rest, mode=mode, has_aux=has_aux)
        method_spec, optimizer_spec = (None, None) if where is None or where[1] is None else where[1]
        parts = {
            "parameters": held(params, 0),
            "method state": device_bytes(states[0], method_spec, sides),
            "optimizer state": device_bytes(states[1], optimizer_spec, sides),
            "batch": sum(held(arg, i) for i, arg in enumerate(rest, 1)),
        }
        results = None if where is None else (where[0], where[1], None)
        return Job(step, (params, states, *rest), (0, 1), mesh_of, where, results, parts, choice)

    if "all" in modes and not isinstance(fn, SplitLosses):
        ways = tuple(mode for mode in ways if mode != "features")
    return compare(machine, step_of, (SUMMED, *(ways if method is not None else ())), size, largest_batch)


def compare(
    target: Target,
    job_of: Callable[[str, int | None], Job],
    names: Sequence[str],
    batch: int | None,
    largest_batch: bool,
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Compiles the ways to make a step, and looks for the largest batch of the last "auto" or the only one.

    Args:
      target: the machine.
      job_of: `(name, batch) -> Job`; a ValueError says why a way cannot be gone.
      names: of the ways.
      batch: examples a step.
      largest_batch: whether to look for it.
      progress: told what is being compiled.

    Returns:
      The plan.
    """
    errors: list[Exception] = []

    def row(name: str, batch: int | None) -> Row:
        with on(target):
            try:
                job = job_of(name, batch)
            except ValueError as error:
                errors.append(error)
                return Row(name, None, str(error))
            progress(f"compiling {name} for {target.name}" + (f", batch {batch}" if batch else ""))
            try:
                found = compile_for(
                    job.fn, job.args, target, mesh=job.mesh, specs=job.specs, out_specs=job.out_specs, donate=job.donate
                )
            except CompilerError as error:
                errors.append(error)
                return Row(name, None, str(error))
        return Row(name, found, job.choice, job.parts, job.mesh or {"devices": target.devices})

    rows = [row(name, batch) for name in names]
    if all(each.compiled is None for each in rows):
        raise errors[-1]
    most = None
    if largest_batch and batch is not None and target.memory is not None:
        chosen = next((each for each in rows if each.name == "auto"), rows[-1])
        if chosen.compiled is not None:
            most = _largest(lambda size: row(chosen.name, size).compiled, chosen.compiled, batch, target)
    return Plan(target, batch, tuple(rows), most)


def _largest(compiled: Callable[[int], Compiled | None], first: Compiled, batch: int, target: Target) -> int | None:
    """The largest batch that fits: bisection, begun where memory that grows in proportion would end; 0 if none does."""
    step = target.devices
    assert target.memory is not None
    fits, too_large = (batch, None) if first.fits else (0, batch)
    guess = batch * 2
    if first.needed and first.memory is not None:
        fixed = first.memory.arguments + first.memory.code
        guess = int(batch * max(target.memory * 0.95 - fixed, 0) / max(first.needed - fixed, 1))
    elif not first.fits:
        guess = batch // 2
    for _ in range(_TRIES):
        if too_large is not None and too_large <= max(fits * _CLOSE, fits + step):
            break
        if not fits < guess < (too_large or guess + 1):
            guess = (fits + too_large) // 2 if too_large is not None else fits * 2
        guess = max(guess // step * step, step)
        if guess in (fits, too_large):
            break
        found = compiled(guess)
        if found is not None and found.fits:
            fits, guess = guess, int(guess * 1.1)
        else:
            too_large, guess = guess, (fits + guess) // 2
    return fits


@contextmanager
def on(target: Target) -> Iterator[None]:
    """Inside, engines are chosen for this machine."""
    platform = "gpu" if target.platform == "cuda" else target.platform
    with assumed(Backend(platform, target.memory)):
        yield


def ways_of(modes: Sequence[str] | str) -> tuple[str, ...]:
    """The engines that are asked for, "all" written out, each once.

    Raises:
      ValueError: if there is no such mode.
    """
    found = list(dict.fromkeys([modes] if isinstance(modes, str) else modes))
    for mode in found:
        if mode not in (*MODES, "all"):
            raise ValueError(f"mode {mode!r} is unknown: use {', '.join(MODES)} or all")
    return MODES if "all" in found else tuple(found)


def _returns_losses(fn: Callable[..., Any], args: Sequence[PyTree]) -> bool | None:
    """Whether a function of losses also has an auxiliary output; None for another function."""
    result = jax.eval_shape(fn, *args)

    def is_losses(value: Any) -> bool:
        return isinstance(value, Mapping) and bool(value) and all(_is_loss(each) for each in value.values())

    if is_losses(result):
        return False
    return True if isinstance(result, tuple) and len(result) == 2 and is_losses(result[0]) else None


def _is_loss(value: Any) -> bool:
    parts = value if isinstance(value, tuple) and len(value) == 2 else (value,)
    return all(getattr(part, "shape", None) == () for part in parts)


def _scalar(loss: Any) -> jax.Array:
    return loss[0] / jnp.maximum(loss[1], 1) if isinstance(loss, tuple) else loss
