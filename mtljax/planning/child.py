"""The process that compiles: `python -m mtljax.planning.child REQUEST_DIRECTORY`, started by `compiler`.

It loads the compiler of a machine that is not there, which may abort, and leaves `result.json` in the directory.
"""

import json
import pickle
import re
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mtljax.planning import hlo
from mtljax.planning.targets import Target, describe_topology

_WRAPPERS = re.compile(r"jit\(call\)/(?:call_exported/)?jit\(flat\)/")  # around the program's own names
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def main(directory: Path) -> None:
    """Compiles `request.pkl` and writes `result.json`, and `program.hlo` if the request says so."""
    request = pickle.loads((directory / "request.pkl").read_bytes())
    exported, target = request["exported"], Target(*request["target"])
    try:
        mesh = build_mesh(target, request["mesh"])
        start = time.perf_counter()
        compiled = compile_exported(exported, mesh, request["donate"])
    except jax.errors.JaxRuntimeError as error:
        result = refusal(str(error))
    else:
        result = {"seconds": time.perf_counter() - start, **read(compiled)}
        if request["text"]:
            (directory / "program.hlo").write_text(_WRAPPERS.sub("", compiled.as_text()), encoding="utf-8")
    written = directory / "result.part"
    written.write_text(json.dumps(result), encoding="utf-8")
    written.rename(directory / "result.json")


def build_mesh(target: Target, sides: dict[str, int]) -> Mesh:
    """The devices of a target as a box with named sides, neighbours beside each other where the compiler knows them."""
    if target.platform == "cpu":
        devices = topologies.TopologyDescription(jax.devices("cpu")[: target.devices])
    else:
        devices = topologies.get_topology_desc(**describe_topology(target))
    names, shape = tuple(sides), tuple(sides.values())
    if not shape:
        return Mesh(np.asarray(devices.devices[0]), ())
    try:
        return topologies.make_mesh(devices, shape, names)
    except (NotImplementedError, ValueError):  # sides that do not fit the wires
        return Mesh(np.asarray(devices.devices).reshape(shape), names)


def compile_exported(exported: Any, mesh: Mesh, donate: tuple[int, ...]) -> Any:
    """Compiles an exported function of flat arguments, laid out as it was exported."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    arguments = [
        jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=sharding or everywhere)
        for aval, sharding in zip(exported.in_avals, exported.in_shardings_jax(mesh), strict=True)
    ]
    outputs = list(exported.out_shardings_jax(mesh))
    if mesh.size == 1:
        outputs = [everywhere] * len(outputs)
    function = jax.jit(exported.call, donate_argnums=donate, out_shardings=outputs)
    return function.lower(*arguments).compile()


def read(compiled: Any) -> dict[str, Any]:
    """What a compiled program says of itself, as JSON."""
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis()
    text = _WRAPPERS.sub("", compiled.as_text())
    costs = (costs[0] if isinstance(costs, list) else costs) or {}  # None from GPUs
    estimate = hlo.cycles(text)
    return {
        "memory": {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "aliased": memory.alias_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
        },
        "costs": {name: costs.get(name) for name in ("flops", "bytes accessed", "transcendentals")},
        "estimate": estimate and estimate._asdict(),
        "collectives": [each._asdict() for each in hlo.collectives(text)],
        "largest": [each._asdict() for each in hlo.largest_arrays(text)],
        "products": [each._asdict() for each in hlo.products(text)],
        "bytes_moved": hlo.bytes_moved(text),
    }


def refusal(message: str) -> dict[str, Any]:
    """What a compiler that gave up said: too little memory, which is a result, or something else.

    >>> refusal("RESOURCE_EXHAUSTED: Ran out of memory on HBM, memory required for HLO temporaries (2.00G)")["needed"]
    2147483648
    """
    first = re.sub(r"^RESOURCE_EXHAUSTED: ", "", message.strip().splitlines()[0])
    if not re.search(r"RESOURCE_EXHAUSTED|[Rr]an out of memory|[Oo]ut of memory", message):
        return {"error": first}
    needed = re.search(r"(?:required for HLO temporaries \(|[Uu]sed )([\d.]+)([KMGT]?)", message)
    largest = [
        {"name": name or "", "shape": shape, "bytes": _bytes(size, unit)}
        for size, unit, name, shape in re.findall(
            r"Size: ([\d.]+)([KMGT]?)B?\s+(?:Operator: op_name=\"(.*?)\".*\s+)?Shape: (\w+\[[\d,]*\])", message
        )
    ]
    return {"needed": _bytes(*needed.groups()) if needed else None, "largest": largest, "message": first}


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * _UNITS[unit])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
