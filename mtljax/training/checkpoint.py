"""Checkpoints of a run: the last two states, to resume bit for bit, and the best networks, to use.

`workdir/checkpoints/last` holds whole states, `workdir/checkpoints/best` only parameters and model state, both written
by orbax in the background. A checkpoint that cannot be written costs a warning, one that cannot be read costs the steps
since the one before.
"""

import contextlib
import errno
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

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

    # Orbax logs every save and the tracebacks of failed ones here; what a user needs of it goes to `warn`.
    logging.getLogger("absl").setLevel(logging.CRITICAL)

    def manager(name: str) -> Any:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, create=create, cleanup_tmp_directories=create, enable_async_checkpointing=True
        )
        return ocp.CheckpointManager((workdir / "checkpoints" / name).resolve(), options=options)

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
    found = _restore_newest(checkpoints, checkpoints.last, "state", like._asdict())
    if found is None:
        return None
    step, tree = found
    for newer in [s for s in checkpoints.last.all_steps() if s > step]:
        # Unreadable, and the run is about to write a checkpoint of that step again.
        checkpoints.last.delete(newer)
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
      `(params, model_state)`, or None when there is none.

    Raises:
      ValueError: if there are checkpoints and none is readable.
    """
    if step is not None and step not in checkpoints.best.all_steps():
        return None
    network = {"params": like, "model_state": model_state}
    found = _restore_newest(checkpoints, checkpoints.best, "network", network, step)
    return None if found is None else (found[1]["params"], found[1]["model_state"])


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
        saved = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        manager.save(step, args=ocp.args.Composite(**saved), force=True)


def _require_space(directory: Path, items: dict[str, PyTree]) -> None:
    """Fails early on a full disk: a save that fails half-way leaves orbax printing tracebacks of its own."""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(items)) + _OVERHEAD
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{free / 1e6:.1f} MB free, {needed / 1e6:.1f} MB needed")


def _restore_newest(
    checkpoints: Checkpoints, manager: Any, item: str, like: PyTree, step: int | None = None
) -> tuple[int, PyTree] | None:
    import orbax.checkpoint as ocp

    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like)
    steps = [step] if step is not None else sorted(manager.all_steps(), reverse=True)
    for candidate in steps:
        try:
            restored = manager.restore(candidate, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(abstract)}))
            return candidate, restored[item]
        except Exception as error:  # damaged files surface as many types
            checkpoints.warn(
                f"the checkpoint of step {candidate} is unreadable ({_first_line(error)}), trying the one before"
            )
    if steps:
        raise ValueError(
            f"no readable checkpoint in {manager.directory}: they are damaged or of another model; "
            "start again in a new --workdir"
        )
    return None


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
