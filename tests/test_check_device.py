"""`scripts/check_device.py` on a CPU, with sizes for tests: what it prints, what it calls wrong, when it ends."""

import time

import jax
import numpy as np
import pytest
from scripts_by_name import script

device = script("check_device")


def found(part, sizes, seconds=60.0):
    """What a part tells, by kind."""
    told = {"say": [], "heads": [], "row": [], "checked": [], "measured": []}
    part(sizes, time.time() + seconds, lambda kind, value: told[kind].append(value))
    return told


def test_a_run_agrees_with_the_cpu_and_prints_and_writes_one_section(tmp_path, capfd):
    path = tmp_path / "device.md"
    words = ["--tiny", "--minutes", "1.5", "--parts", "correctness,estimates", "--output", str(path)]
    assert device.main(words) == 0
    lines = path.read_text().splitlines()
    assert capfd.readouterr().out.split() == path.read_text().split()
    assert lines[0].startswith(f"## {jax.devices()[0].device_kind}, jax {jax.__version__}, 20")
    assert [line for line in lines if line.startswith("###")] == ["### Correctness", "### Estimates"]
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| mlp")]
    assert [row[1:5] for row in rows] == [["cagrad", "auto", "3", "highest"], ["cagrad", "vmap", "12", "highest"]]
    assert [row[-2:] for row in rows] == [["skipped", "yes"]] * 2
    assert lines[-1] == "2 of 2 checks of correctness pass."


def test_cells_are_timed_alone_and_in_one_program():
    rows = found(device.blocks, device.TINY)["row"]
    assert [row[2] for row in rows] == ["alone", 1, 2]
    assert all(row[3] > 0 for row in rows)


@pytest.mark.parametrize("fault", ["gradient", "state"])
def test_a_fault_of_the_device_fails_the_check(monkeypatch, fault):
    """The first of the two programs is the device's."""

    def program(wrong):
        def run(params, state, after, x, y, scales):
            gradient = np.float32([1, 2]) * np.sum(scales) * (1 + 2e-4 * (wrong and fault == "gradient"))
            if wrong and fault == "state":
                state = jax.tree.map(lambda leaf: leaf + 1, state)
            return (params, state, after), (gradient, None)

        return run

    def programs(jobs, until):
        for key, lower in jobs[:2]:
            lower()
            yield key, [program(key[2] == "auto"), program(False)]

    monkeypatch.setattr(device, "compiled", programs)
    told = found(device.correctness, device.TINY)
    assert told["checked"] == [False, True]
    assert [row[-1] for row in told["row"]] == ["**NO**", "yes"]


def test_steps_are_measured_beside_the_summed_loss():
    told = found(device.steps, device.TINY)
    assert [row[2] for row in told["row"]] == ["summed loss", "loop"]
    assert told["row"][0][4] == told["row"][0][6] == 1
    assert [row["form"] for row in told["measured"]] == ["summed loss", "loop"]


def test_what_does_not_fit_is_named():
    told = found(device.correctness, device.TINY, seconds=-1)
    assert not told["checked"]
    assert told["say"][-1].startswith("No time was left for 2: mlp cagrad (auto), mlp cagrad (vmap).")


def test_a_part_that_takes_too_long_is_ended(monkeypatch, tmp_path):
    path = tmp_path / "slow.py"
    path.write_text('import time; print(\'["say", "begun"]\', flush=True); time.sleep(60)')
    monkeypatch.setattr(device, "__file__", str(path))
    start = time.monotonic()
    assert [*device.made_by("steps", True, time.time() + 2, None, [])] == [
        ("say", "begun"),
        ("say", "This part was ended: its time was over."),
    ]
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("kind", "chip"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5p", "v5p"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU v4", "v4"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
    ],
)
def test_a_device_is_known_by_its_kind(kind, chip):
    assert device.target_of(kind).chip == chip
    assert device.target_of("NVIDIA GH200 480GB") is None
