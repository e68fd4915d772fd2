"""A program compiled for a machine that is not there.

The program is traced and lowered here, with no plug-in, and compiled in a process of its own (`child`), which may die.
Results are kept on disk, by program, machine and versions.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import pickle
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import mtljax
from mtljax.data import cache
from mtljax.errors import CompilerError
from mtljax.planning.lowering import abstract_mesh as abstract_mesh
from mtljax.planning.lowering import export_flat, mesh_sides
from mtljax.planning.results import Compiled as Compiled
from mtljax.planning.results import Memory as Memory
from mtljax.planning.results import argument_names, from_json
from mtljax.planning.targets import Target, describe_topology

PyTree = Any
logger = logging.getLogger(__name__)

_PLUGINS = {"tpu": ("libtpu",), "cuda": ("jax-cuda12-plugin", "jax-cuda13-plugin"), "cpu": ()}
# libtpu looks for the machine it is on, asks a server and complains, unless it is told.
_TPU_SETTINGS = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}
# Of a process that tests or trains: they would change the program, or count as devices of the machine.
_NOT_PASSED = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR", "JAX_NUM_CPU_DEVICES")
# Where each operation stands in its file, and every caller: a line more above it is no other program.
_LOCATIONS = re.compile(r"^#loc.*\n| loc\((?:#loc\d*|unknown)\)", re.MULTILINE)
_SOURCES = ("compiler", "child", "hlo", "hlo_text", "products", "buffers")  # that results depend on
_LINES = 5  # of what a child that died had to say


def compile_for(
    fn: Callable[..., PyTree],
    args: Sequence[PyTree],
    target: Target,
    *,
    mesh: Mapping[str, int] | None = None,
    specs: Sequence[PyTree] | None = None,
    out_specs: PyTree = None,
    donate: Sequence[int] = (),
    text: bool = False,
) -> Compiled:
    """Compiles a function for a machine that need not be there.

    Args:
      fn: of positional arguments, traceable; jitted or not.
      args: for it: pytrees of arrays or of `jax.ShapeDtypeStruct`, of which only shapes and types are looked at. Those
        that it does not use count as memory, which they take wherever they come from.
      target: the machine.
      mesh: names and sizes of the sides in which its devices are laid out, {"data": 2, "model": 2}; None for one device
        if there are no specs, all in one side "devices" if there are. `abstract_mesh(mesh)` is what `fn` may use in a
        `jax.shard_map` or sharding constraint.
      specs: how the arguments lie on the mesh, for each argument a `PartitionSpec` or a tree of them that is a prefix
        of its own; None for a whole copy on each device.
      out_specs: how the results are to lie, a prefix of them; None leaves it to the compiler.
      donate: positions of arguments whose memory the results may take.
      text: whether to return the compiled program.

    Returns:
      What is known of it. That it does not fit is a result, not an error.

    Raises:
      ModuleNotFoundError: if the compiler is not installed.
      ValueError: if the mesh has not as many places as the target devices, or there are not as many specs as arguments.
      CompilerError: if the compiler refuses the program, or dies.
    """
    versions = _versions(target)
    sides = mesh_sides(target, mesh, specs is not None or out_specs is not None)
    try:
        exported, donated = export_flat(fn, tuple(args), target.platform, sides, specs, out_specs, tuple(donate))
    except (ValueError, NotImplementedError) as error:
        if "lowering platform" not in str(error) and "callback" not in str(error):
            raise
        raise ValueError(
            "a step that calls back into Python (jax.debug.print, jax.debug.callback, io_callback) cannot be compiled "
            "for a machine that is not here: leave the call out of what is planned"
        ) from error
    flags = {name: _environment(target).get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    machine = (target.name, describe_topology(target) if target.platform != "cpu" else "")
    module = exported.mlir_module()
    parts = [
        _LOCATIONS.sub("", module),
        machine,
        sides,
        donated,
        versions,
        flags,
        *(Path(__file__).with_name(f"{name}.py").read_bytes() for name in _SOURCES),
    ]
    key = hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()
    found = _load(key, text)
    if found is None:
        request = {"exported": exported, "target": tuple(target), "mesh": sides, "donate": donated, "text": text}
        found = _run(request, target)
        _store(key, found)
    return from_json(target, found, argument_names(fn, args), module)


def _versions(target: Target) -> dict[str, str]:
    """Versions of what compiles.

    Raises:
      ModuleNotFoundError: if it is not installed.
    """
    found = {}
    for name in ("jax", "jaxlib", *_PLUGINS[target.platform]):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if _PLUGINS[target.platform] and not set(_PLUGINS[target.platform]) & set(found):
        raise ModuleNotFoundError(
            f'the compiler for {target.name} is not installed: pip install "mtljax[{target.platform}]" '
            f"({'no TPU' if target.platform == 'tpu' else 'no GPU'} is needed)"
        )
    return found


def _run(request: dict[str, Any], target: Target) -> dict[str, Any]:
    """Compiles in another process."""
    with tempfile.TemporaryDirectory(prefix="mtljax-plan-") as name:
        directory = Path(name)
        plain = dataclasses.replace(request["exported"], _get_vjp=None)  # what cannot be pickled
        (directory / "request.pkl").write_bytes(pickle.dumps({**request, "exported": plain}))
        process = subprocess.run(
            _command(directory),
            env=_environment(target),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            text=True,
            errors="replace",
        )
        path = directory / "result.json"
        if not path.exists():  # if it is there, a plug-in may have died on the way out
            lines = [line.strip() for line in process.stdout.splitlines() if line.strip()][-_LINES:]
            last = " | ".join(lines) or "it said nothing"
            code = process.returncode
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise CompilerError(f"the compiler for {target.name} died ({how}): {last}")
        found = json.loads(path.read_text(encoding="utf-8"))
        if "error" in found:
            raise CompilerError(f"the compiler for {target.name} refused the program: {found['error']}")
        program = directory / "program.hlo"
        return {**found, "text": program.read_text(encoding="utf-8") if program.exists() else None}


def _command(directory: Path) -> list[str]:
    return [sys.executable, "-P", "-m", "mtljax.planning.child", str(directory)]


def _environment(target: Target) -> dict[str, str]:
    """Variables of the process that compiles: no device but the CPU, the settings of the compiler, this mtljax."""
    variables = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED}
    flags = re.sub(r"--xla_force_host_platform_device_count=\S+", "", variables.get("XLA_FLAGS", ""))
    if target.platform == "cpu":
        flags += f" --xla_force_host_platform_device_count={target.devices}"
    if target.platform == "cuda":
        flags += " --xla_gpu_autotune_level=0"  # there is no GPU to time kernels on
    root = str(Path(mtljax.__file__).parents[1])
    return {
        **variables,
        **(_TPU_SETTINGS if target.platform == "tpu" else {}),
        "XLA_FLAGS": flags.strip(),
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": str(jax.config.jax_enable_x64),
        "TF_CPP_MIN_LOG_LEVEL": variables.get("TF_CPP_MIN_LOG_LEVEL", "3"),
        "PYTHONPATH": os.pathsep.join(filter(None, (root, variables.get("PYTHONPATH")))),
    }


def _load(key: str, text: bool) -> dict[str, Any] | None:
    try:
        found = json.loads((cache.directory() / "plan" / f"{key}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("cache entry plan/%s is damaged (%s): compiling again", key, error)
        return None
    return found if found.get("text") or not text or "memory" not in found else None


def _store(key: str, found: dict[str, Any]) -> None:
    """Writes a result as a whole or not at all; without a place to write, nothing is kept."""
    try:
        path = cache.directory() / "plan" / f"{key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        try:
            temporary.write_text(json.dumps(found), encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("cannot keep what was compiled (%s): MTLJAX_CACHE names another directory", error)
