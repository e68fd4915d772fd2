"""The log of a run: metrics.jsonl, one JSON object a line, and TensorBoard files when tensorboardX is installed.

Records have `step`, `epoch` and `split`. Those of "train" hold the mean `losses` by task since the record before and
the method's `weights`; those of "validation", "test" (once, at the end) and "test_curve" (if asked for, at every
evaluation) hold `metrics` by task; those of "probe" (if asked for, once an epoch) what was measured besides. `seconds`
counts from the start of the run and is the one field that differs between equal runs.
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]
METRICS = "metrics.jsonl"


def read_records(path: Path) -> list[Record]:
    """Reads a metrics.jsonl; a last line cut short by a kill is left out.

    Args:
      path: the file; a missing one has no records.

    Returns:
      The records in order.
    """
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if isinstance(record, dict) and {"step", "split"} <= record.keys():
            records.append(record)
    return records


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file in one step, so that a reader or a kill sees the old text or the new, never half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class RunLog:
    """Appends records to the log of one run; a failure to write costs a warning, not the run.

    Attributes:
      records: all records of the run, those of before a resume included.
    """

    def __init__(
        self, workdir: Path | None, warn: Callable[[str], None], *, tensorboard: bool, until: int | None
    ) -> None:
        """Opens the log.

        Args:
          workdir: the run's directory, None to keep the records in memory only.
          warn: where warnings go.
          tensorboard: whether to write TensorBoard files too, if tensorboardX is installed.
          until: when resuming, the step of the checkpoint: later records are dropped, they will be written again.
        """
        self.records: list[Record] = []
        self._warn = warn
        self._file = None
        self._tensorboard = None
        if workdir is None:
            return
        path = workdir / METRICS
        if until is not None:
            self.records = [
                record for record in read_records(path) if record["step"] <= until and record["split"] != "test"
            ]
        try:
            write_atomically(path, "".join(_line(record) for record in self.records))
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            self._stop_writing(error)
        if tensorboard:
            self._tensorboard = _tensorboard_writer(workdir, until)

    def write(self, record: Record) -> None:
        """Adds a record; it is on disk when this returns."""
        self.records.append(record)
        if self._file is not None:
            try:
                self._file.write(_line(record))
                self._file.flush()
            except OSError as error:
                self._stop_writing(error)
        if self._tensorboard is not None:
            for name, value in _scalars(record):
                self._tensorboard.add_scalar(f"{record['split']}/{name}", value, record["step"])

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                self._stop_writing(error)
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _stop_writing(self, error: OSError) -> None:
        self._warn(f"cannot write {METRICS} ({error.strerror}); the run goes on without its log")
        self._file = None


def _line(record: Record) -> str:
    return json.dumps(finite(record), allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(record: Record) -> list[tuple[str, float]]:
    scalars = [(f"loss/{task}", loss) for task, loss in record.get("losses", {}).items()]
    for task, values in record.get("metrics", {}).items():
        scalars += [(f"{name}/{task}", value) for name, value in values.items()]
    scalars += [(f"weight/{task}", weight) for task, weight in (record.get("weights") or {}).items()]
    return scalars + list(_means(record.get("probe"), ""))


def _means(measured: Any, path: str) -> Iterator[tuple[str, float]]:
    """What a probe has the mean of, at any depth."""
    if not isinstance(measured, dict):
        return
    if measured.get("mean") is not None:
        yield path, measured["mean"]
    for name, inner in measured.items():
        yield from _means(inner, f"{path}/{name}" if path else name)


def _tensorboard_writer(workdir: Path, until: int | None) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(workdir / "tensorboard"), purge_step=None if until is None else until + 1)
