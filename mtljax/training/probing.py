"""What is measured while a run trains, besides its losses, and changes nothing in it.

The loop is given a `Probe` and knows nothing of what it measures. Every `probe_every` steps it looks at the parameters
before the update and at some examples of the update's batch; once an epoch the log gets a summary, a record of split
"probe". What the unfinished epoch has gathered lies beside the checkpoints, so that a resumed run writes the record
that it would have written.
"""

import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from mtljax.data import MultiTaskData
from mtljax.data.batches import take
from mtljax.training import parallel, processes
from mtljax.training.config import TrainConfig
from mtljax.training.logs import RunLog
from mtljax.training.program import Program
from mtljax.training.state import TrainState

PyTree = Any
Measurement: TypeAlias = dict[str, Any]  # arrays by name
GATHERED = "probe.npz"


class Probe(NamedTuple):
    """Something to measure during training; both are functions of a module, so that other processes find them.

    Attributes:
      measure: `(losses_fn, params, rest, batch, key) -> {name: array}`, not jitted: what it compiles it keeps by
        `losses_fn`, which is the same object for all runs of a program. `losses_fn(params, rest, batch)` gives the
        losses by task of a batch, as in an evaluation: running averages, no dropout.
      summary: `(tasks, [what measure returned, ...]) -> dict` of numbers for JSON, for one epoch.
    """

    measure: Callable[..., Measurement]
    summary: Callable[[Sequence[str], Sequence[Measurement]], dict[str, Any]]


class Prober:
    """Looks through the probe of one run, and holds what the epoch has gathered."""

    def __init__(
        self,
        config: TrainConfig,
        data: MultiTaskData,
        program: Program,
        probe: Probe | None,
        workdir: Path | None = None,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Prepares a run's probe.

        Args:
          config: the run; with `probe_every` 0 nothing is ever measured.
          data: its data.
          program: its compiled functions.
          probe: what to measure.
          workdir: where what is gathered is kept for a resumed run; None keeps nothing.
          warn: where warnings go.

        Raises:
          ValueError: if something is to be measured and there is no probe.
        """
        if config.probe_every and probe is None:
            raise ValueError(
                f"probe_every={config.probe_every}, but there is no probe: pass "
                "train(config, probe=mtl.analysis.sample_probe), or set probe_every=0"
            )
        self._config, self._data, self._program, self._probe = config, data, program, probe
        self._path = None if workdir is None else workdir / GATHERED
        self._warn = warn
        self._every = config.probe_every if processes.is_main() else 0  # one process looks, and writes
        self._order: tuple[int, Any] = (-1, None)
        self._measured: dict[int, Measurement] = {}  # by step

    def due(self, step: int) -> bool:
        """Whether to look before the update that follows `step` updates."""
        return self._every > 0 and step % self._every == 0

    def look(self, step: int, network: tuple[PyTree, PyTree], permutation: Callable[[], Any]) -> None:
        """Measures.

        Args:
          step: updates so far.
          network: from `network`.
          permutation: gives the order of this epoch's examples.
        """
        assert self._probe is not None
        config, (epoch, batch) = self._config, divmod(step, self._program.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, np.asarray(permutation())
        indices = self._order[1][batch * config.batch_size : (batch + 1) * config.batch_size]
        count = min(config.probe_samples, len(indices))
        chosen = np.random.default_rng((config.seed, step)).choice(indices, count, replace=False)
        key = jax.random.fold_in(jax.random.PRNGKey(config.seed), step)
        examples = take(self._data.splits["train"], np.sort(chosen))
        measured = self._probe.measure(self._program.losses, *network, examples, key)
        # Waits so that its time is not taken for that of the next step.
        self._measured[step] = jax.block_until_ready(measured)

    def write(self, log: RunLog, step: int, seconds: float) -> None:
        """Writes the record of what was gathered, if anything was, and starts anew."""
        if not self._measured:
            return
        assert self._probe is not None
        measured = jax.device_get([self._measured[at] for at in sorted(self._measured)])
        self._measured = {}
        record = {
            "step": step,
            "epoch": step / self._program.steps_per_epoch,
            "split": "probe",
            "probe": {"looks": len(measured)} | self._probe.summary(sorted(self._program.tasks), measured),
            "seconds": round(seconds, 3),
        }
        log.write(record)

    def save(self) -> None:
        """Keeps what is gathered for a run that resumes from the checkpoint written now."""
        if self._path is None or not self._measured:  # what an older checkpoint may still need stays
            return
        temporary = self._path.with_name(f".{GATHERED}.{os.getpid()}")
        try:
            arrays = {
                f"{step}/{name}": array for step, measured in self._measured.items() for name, array in measured.items()
            }
            with temporary.open("wb") as file:
                np.savez(file, **jax.device_get(arrays))
            os.replace(temporary, self._path)
        except OSError as error:
            self._warn(f"cannot write {GATHERED} ({error.strerror}); a resumed run will not have what it holds")
        finally:
            temporary.unlink(missing_ok=True)

    def restore(self, step: int) -> None:
        """Takes up what was gathered in the epoch of a checkpoint, `step` updates from the start."""
        if self._path is None or not self._every or not self._path.is_file():
            return
        first = step - step % self._program.steps_per_epoch
        try:
            with self._path.open("rb") as file, np.load(file) as arrays:
                for name in arrays.files:
                    at, _, rest = name.partition("/")
                    if first <= int(at) < step:
                        self._measured.setdefault(int(at), {})[rest] = arrays[name]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            self._measured = {}
            self._warn(f"{GATHERED} is damaged ({type(error).__name__}): this epoch's probe starts from step {step}")


def network(state: TrainState, devices: parallel.Devices) -> tuple[PyTree, PyTree]:
    """What a probe reads of a state, on one device: parameters, and the rest that the losses need."""
    pair = state.params, (state.model_state, state.loss_scales)
    return pair if len(devices.every) == 1 else parallel.fetch(pair, devices)  # a copy where there are several
