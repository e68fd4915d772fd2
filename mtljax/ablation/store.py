"""The directory of a study: `study.json`, one record a cell in `cells/`, and the lock of the process that writes.

Everything is written in one step, so that a kill at any moment leaves whole records and nothing else that is read.
"""

import contextlib
import json
import math
import os
import socket
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mtljax.ablation.cell import Cell, Record
from mtljax.ablation.grid import StudyConfig
from mtljax.training.config import differences, to_dict
from mtljax.training.logs import finite, write_atomically

STUDY = "study.json"
LOCK = ".lock"
# Of the base: each cell has its own, so a change of them changes no finished one.
_VARIED = ("name", "method", "optimizer", "seed", "checkpoints", "tensorboard")
_MEASURED = ("validation", "test", "metrics", "losses", "weights")


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Makes the directory and keeps other processes out of it; the system frees the lock when its holder dies.

    Args:
      directory: of the study.

    Raises:
      ValueError: if another process holds it, naming that process, or the directory cannot be made.
    """
    try:
        (directory / "cells").mkdir(parents=True, exist_ok=True)
        file = (directory / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot write to the workdir {directory}: {error.strerror}") from error
    with file:
        if not _acquire(file.fileno(), directory):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise ValueError(
                f"{directory} is in use by {holder}: wait until it has finished, stop it, or choose another --workdir"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        for left in (directory / "cells").glob(".*.json.*"):  # half a record, of a process that was killed
            left.unlink(missing_ok=True)
        yield


def _acquire(descriptor: int, directory: Path) -> bool:
    """Takes the lock; where there are no locks, as on some network file systems, there is nothing to wait for."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        warnings.warn(
            f"{directory} cannot be locked ({error.strerror}): see that no other process runs a study in it",
            stacklevel=2,
        )
    return True


def write_study(directory: Path, study: StudyConfig, cells: Sequence[Cell], described: dict[str, Any]) -> None:
    """Writes what the study is, the names of its cells, and what the report says of it."""
    contents = described | {"identity": _identity(study), "cells": [cell.name for cell in cells]}
    text = json.dumps(finite(contents), indent=2, allow_nan=False)
    write_atomically(directory / STUDY, text + "\n")


def write_record(directory: Path, record: Record) -> None:
    """Writes the record of a cell."""
    write_atomically(directory / "cells" / f"{record['cell']}.json", json.dumps(finite(record), allow_nan=False) + "\n")


def check_study(directory: Path, study: StudyConfig) -> None:
    """Raises ValueError if the directory holds another study; more methods, points or seeds make no other one."""
    try:
        held = json.loads((directory / STUDY).read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # none yet, or an older one: the records are compared
    changed = differences(finite(held), finite(json.loads(json.dumps(_identity(study)))))
    if changed:
        raise _another(directory, f"it differs in {', '.join(changed)}")


def read_finished(directory: Path, cells: Iterable[Cell], *, retry_failed: bool = False) -> dict[str, Record]:
    """The records there are of some cells, by name.

    Args:
      directory: of the study.
      cells: the cells.
      retry_failed: leave out those that failed.

    Returns:
      The records; a damaged one is left out, so that its cell is run again.

    Raises:
      ValueError: if a cell of that name was another run.
    """
    records = {}
    for cell in cells:
        record = _read(directory / "cells" / f"{cell.name}.json")
        if record is None:
            continue
        changed = differences(finite(record["config"]), finite(to_dict(cell.config)))
        if changed:
            raise _another(directory, f"its cell {cell.name} differs in {', '.join(changed)}")
        if record["status"] == "finished" or not retry_failed:
            records[cell.name] = record
    return records


def parse_record(text: str) -> Any:
    """A record from its JSON, in which null stands for measured numbers that are not finite: they become NaN."""

    def restored(part: dict[str, Any]) -> dict[str, Any]:
        return part | {name: _with_nan(part[name]) for name in _MEASURED if isinstance(part.get(name), dict)}

    return json.loads(text, object_hook=restored)


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_nan(item) for key, item in value.items()}
    return math.nan if value is None else value


def _read(path: Path) -> Record | None:
    try:
        record = parse_record(path.read_text(encoding="utf-8"))
        return record if isinstance(record["config"], dict) and record["status"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _identity(study: StudyConfig) -> dict[str, Any]:
    """What all cells of a study share; a directory whose study differs in it holds another one."""
    base = {key: value for key, value in to_dict(study.base).items() if key not in _VARIED}
    for name in study.fields:  # the axes say what they are
        group, _, rest = name.partition(".")
        inner = base.get(group)
        if isinstance(inner, dict):
            nested, _, option = rest.partition(".")
            (inner[nested] if option else inner).pop(option or nested, None)
        else:
            base.pop(group, None)
    return {"name": study.name, "axes": sorted(study.fields), "tuned": sorted(study.chosen), "base": base}


def _another(directory: Path, difference: str) -> ValueError:
    return ValueError(f"{directory} holds another study: {difference}; choose another --workdir")
