"""Checkpoints of a run: the last two states, to resume bit for bit, and the best networks, to use.

`workdir/checkpoints/last` holds whole states, `workdir/checkpoints/best` only parameters and model state, both written
by orbax in the background. A checkpoint that cannot be written costs a warning, one that cannot be read costs the steps
since the one before.
"""

import contextlib
import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mtljax.training import processes
from mtljax.training.state import TrainState

PyTree = Any
Warn = Callable[[str], None]
_OVERHEAD = 1_000_000  # bytes for a checkpoint's metadata and half-written files


class Checkpoints(NamedTuple):
    """The two orbax managers of a run, and where their warnings go."""

    last: Any
    best: Any
    warn: Warn


def open_checkpoints(workdir: Path, warn: Warn, *, create: bool = True) -> Checkpoints:
    """Opens (and unless `create=False` makes) the checkpoint directories of a run."""
    import orbax.checkpoint as ocp

    def manager(name: str) -> Any:
        directory = (workdir / "checkpoints" / name).resolve()
        multiprocessing, make = ocp.options.MultiprocessingOptions(), create
        if not processes.alone():  # only this process is here: orbax must not wait for the others
            multiprocessing = ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}, barrier_sync_key_prefix=name
            )
            if make:  # orbax makes directories only when all processes do
                directory.mkdir(parents=True, exist_ok=True)
                make = False
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2,
            create=make,
            cleanup_tmp_directories=create,
            enable_async_checkpointing=True,
            multiprocessing_options=multiprocessing,
        )
        return ocp.CheckpointManager(directory, options=options)

    return Checkpoints(manager("last"), manager("best"), warn)


def save_last(checkpoints: Checkpoints, state: TrainState) -> None:
    """Saves a state of one device in the background; a failure is a warning, the run goes on."""
    _save(checkpoints.last, int(state.step), {"state": state._asdict()}, checkpoints.warn)


def save_best(checkpoints: Checkpoints, step: int, params: PyTree, model_state: PyTree) -> None:
    """Saves the best network so far in the background; a failure is a warning, the run goes on."""
    network = {"params": params, "model_state": model_state}
    _save(checkpoints.best, step, {"network": network}, checkpoints.warn)


def restore_last(checkpoints: Checkpoints, like: TrainState) -> TrainState | None:
    """The newest readable state.

    Args:
      checkpoints: the run's checkpoints.
      like: a state of the same structure, shapes and dtypes.

    Returns:
      The state, on one device, or None when the run has no checkpoint yet.

    Raises:
      ValueError: if there are checkpoints and none is readable.
    """
    tree = _restore_newest(checkpoints, checkpoints.last, "state", like._asdict())
    if tree is None:
        return None
    for manager in (checkpoints.last, checkpoints.best):
        for newer in [step for step in manager.all_steps() if step > int(tree["step"])]:
            # Unreadable or from after this state: the run is about to get there again.
            manager.delete(newer)
    return TrainState(**tree)


def restore_best(
    checkpoints: Checkpoints, like: PyTree, model_state: PyTree, step: int | None = None
) -> tuple[PyTree, PyTree] | None:
    """The best network, or that of a given step.

    Args:
      checkpoints: the run's checkpoints.
      like: parameters of the same structure.
      model_state: model state of the same structure.
      step: the step it must be of; None for the newest readable one.

    Returns:
      `(params, model_state)`, or None when there is none, or that of the step is unreadable.

    Raises:
      ValueError: if there are checkpoints and, with `step=None`, none is readable.
    """
    network = {"params": like, "model_state": model_state}
    if step is None:
        restored = _restore_newest(checkpoints, checkpoints.best, "network", network)
    else:
        restored = (
            _restore(checkpoints, checkpoints.best, "network", network, step) if has_best(checkpoints, step) else None
        )
    return None if restored is None else (restored["params"], restored["model_state"])


def has_best(checkpoints: Checkpoints, step: int) -> bool:
    """Whether the best network of that step is on disk."""
    return step in checkpoints.best.all_steps()


def wait(checkpoints: Checkpoints) -> None:
    """Waits until all checkpoints are on disk."""
    for manager in (checkpoints.last, checkpoints.best):
        with _warning(checkpoints.warn, "a checkpoint could not be saved"):
            manager.wait_until_finished()


def close(checkpoints: Checkpoints) -> None:
    """Waits for the checkpoints and closes the managers."""
    wait(checkpoints)
    for manager in (checkpoints.last, checkpoints.best):
        with _warning(checkpoints.warn, "a checkpoint could not be saved"):
            manager.close()


@contextlib.contextmanager
def _warning(warn: Warn, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # orbax raises whatever its backends do
        warn(f"{what} ({_first_line(error)}); the run goes on, its previous checkpoint is intact")


def _save(manager: Any, step: int, items: dict[str, PyTree], warn: Warn) -> None:
    import orbax.checkpoint as ocp

    with _warning(warn, f"the checkpoint of step {step} could not be saved"):
        manager.wait_until_finished()  # surfaces the failure of the save before
    with _warning(warn, f"the checkpoint of step {step} could not be saved"):
        _require_space(Path(manager.directory), items)
        if step in manager.all_steps():  # written before a kill that lost its log record
            manager.delete(step)
        if not processes.alone():  # orbax takes an array on one process's device for a mistake
            items = jax.device_get(items)
        saved = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        manager.save(step, args=ocp.args.Composite(**saved), force=True)


def _require_space(directory: Path, items: dict[str, PyTree]) -> None:
    """Fails early on a full disk: a save that fails half-way leaves orbax printing tracebacks of its own."""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(items)) + _OVERHEAD
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{free / 1e6:.1f} MB free, {needed / 1e6:.1f} MB needed")


def _restore_newest(checkpoints: Checkpoints, manager: Any, item: str, like: PyTree) -> PyTree | None:
    steps = sorted(manager.all_steps(), reverse=True)
    for step in steps:
        tree = _restore(checkpoints, manager, item, like, step)
        if tree is not None:
            return tree
    if steps:
        raise ValueError(
            f"no readable checkpoint in {manager.directory}: they are damaged or of another model; "
            "start again in a new --workdir"
        )
    return None


def _restore(checkpoints: Checkpoints, manager: Any, item: str, like: PyTree, step: int) -> PyTree | None:
    import orbax.checkpoint as ocp

    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if processes.alone():
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like)
    else:
        abstract = jax.device_get(like)
    try:
        return manager.restore(step, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(abstract)}))[item]
    except Exception as error:  # damaged files surface as many types
        checkpoints.warn(
            f"the checkpoint of step {step} is unreadable ({_first_line(error)}), falling back to one before"
        )
        return None


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
