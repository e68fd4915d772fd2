"""Machines by name: their sizes, and errors that name the nearest."""

import pytest

from mtljax.planning import targets
from mtljax.planning.targets import parse


@pytest.mark.parametrize(
    ("name", "full", "chips", "devices"),
    [
        ("v5e", "v5e:1x1", 1, 1),
        ("v5e:4x4", "v5e:4x4", 16, 16),
        ("v6e:2x1", "v6e:2x1", 2, 2),
        ("v4", "v4:1x1x1", 1, 1),
        ("v5p:2x2x1", "v5p:2x2x1", 4, 4),
        ("tpu7x:2x2x1", "tpu7x:2x2x1", 4, 8),
        (" H100 ", "h100", 1, 1),
        ("h100x8", "h100x8", 8, 8),
        ("a100x16", "a100x16", 16, 16),
        ("cpu", "cpu", 1, 1),
        ("cpux4", "cpux4", 4, 4),
    ],
)
def test_a_name_says_which_machine(name, full, chips, devices):
    target = parse(name)
    assert (target.name, target.chips, target.devices) == (full, chips, devices)
    assert parse(target.name) == target


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5", "did you mean 'v5p'"),
        ("h10", "did you mean 'h100'"),
        ("v5e:", "did you mean 'v5e'"),
        ("tpu", "h100x8"),
        ("", "Valid: a100|valid: a100"),
        ("v5e:3x3", "did you mean v5e:2x4 or v5e:4x4"),
        ("v5e:32x32", "did you mean v5e:16x16"),
        ("v5p:4x4", "3 sides, each 1 or even"),
        ("v5e:2x2x1", "2 sides"),
        ("v5e:0x2", "each 1 or even"),
        ("v5e:axb", "did you mean v5e:1x1"),
        ("h100x9", "did you mean h100x8"),
        ("h100x0", "did you mean h100x8"),
        ("a100:8", "a100x4"),
        ("cpux0", "1 to 512"),
    ],
)
def test_another_name_is_refused_in_one_sentence(name, said):
    with pytest.raises(ValueError, match=said) as caught:
        parse(name)
    assert "\n" not in str(caught.value)
    assert name.strip() in str(caught.value)


def test_figures_are_of_a_device():
    chip, pair = parse("v5e"), parse("tpu7x")
    assert chip.memory == 16 * 2**30
    assert chip.bandwidth == 819e9
    assert chip.peak_flops == 197e12
    assert pair.memory == 96 * 2**30  # half a chip's
    assert parse("h100x8").memory == parse("h100").memory == 60 * 10**9  # of 80, what jax takes
    for name in targets.chips():
        target = parse(name)
        assert (target.memory is None) == (target.platform == "cpu")
        assert (target.clock is None) == (target.platform != "tpu")


@pytest.mark.parametrize("name", ["a100", "h100", "h200", "b200"])
def test_a_gpu_is_described_as_the_table_has_it(name):
    arguments = targets.describe_topology(parse(f"{name}x4"))
    assert arguments["topology"] == "1x1x4"
    lines = dict(line.strip().split(": ", 1) for line in arguments["target_config"].splitlines() if ": " in line)
    assert int(lines["memory_bandwidth"]) == parse(name).bandwidth
    assert int(lines["device_memory_size"]) * 3 // 4 == parse(name).memory
    assert "#" not in arguments["target_config"]


def test_hosts_are_filled_with_gpus():
    assert parse("h100x16").topology == "1x2x8"


def test_two_cores_of_a_v4_are_one_device():
    assert targets.describe_topology(parse("v4:2x2x1")) == {
        "platform": "tpu",
        "topology_name": "v4:2x2x1",
        "chip_config_name": "megacore",
    }
