import hashlib

import numpy as np
import pytest

from mtljax import data
from mtljax.data import pairs
from mtljax.data.digits import LAYOUT, SOURCE_BOUNDS, _sources

SMALL = {"num_train": 500, "num_validation": 200, "num_test": 200}


def digest(made):
    content = hashlib.sha256()
    for split in made.splits.values():
        for array in (split.inputs, split.targets["left"], split.targets["right"]):
            content.update(np.ascontiguousarray(array))
    return content.hexdigest()


def placements(image, left, right, images, labels):
    """All ways to make this image from two sources of these classes, by trying every one; the test's own overlay."""
    found = []
    for first in np.flatnonzero(labels == left):
        for row, column in np.ndindex(3, 3):
            canvas = np.zeros((12, 12), np.uint8)
            canvas[row : row + 8, column : column + 8] = images[first]
            if not (canvas <= image).all():
                continue
            for second in np.flatnonzero(labels == right):
                for i, j in np.ndindex(3, 3):
                    both = canvas.copy()
                    window = both[i + 2 : i + 10, j + 2 : j + 10]
                    np.maximum(window, images[second], out=window)
                    if (both == image).all():
                        found.append((first, second))
    return found


def test_digits_have_the_documented_shapes_and_tasks():
    made = data.digits()
    assert {name: split.inputs.shape for name, split in made.splits.items()} == {
        "train": (8000, 12, 12, 1),
        "validation": (2000, 12, 12, 1),
        "test": (2000, 12, 12, 1),
    }
    for split in made.splits.values():
        assert split.inputs.dtype == np.uint8
        assert split.inputs.max() == 255
        assert sorted(split.targets) == ["left", "right"]
        for target in split.targets.values():
            assert target.dtype == np.int32
            assert set(target.tolist()) == set(range(10))
    assert made.spec == {
        "inputs": {"shape": [12, 12, 1], "dtype": "uint8"},
        "tasks": {name: {"kind": "classification", "num_classes": 10} for name in ("left", "right")},
    }


def test_the_two_classes_always_differ():
    for split in data.digits(seed=3, **SMALL).splits.values():
        assert (split.targets["left"] != split.targets["right"]).all()


def test_every_image_is_the_pixel_maximum_of_two_sources_of_its_own_split():
    images, labels = _sources()
    made = data.digits(**SMALL)
    order = pairs.permutation(pairs.stream(0, 0), len(images))
    for k, split in enumerate(made.splits.values()):
        own = set(order[SOURCE_BOUNDS[k] : SOURCE_BOUNDS[k + 1]].tolist())
        for n in range(2):
            ways = placements(
                split.inputs[n, ..., 0], split.targets["left"][n], split.targets["right"][n], images, labels
            )
            assert any(first in own and second in own for first, second in ways)


def test_source_images_of_the_splits_are_disjoint_and_complete():
    order = pairs.permutation(pairs.stream(7, 0), 1797)
    assert sorted(order.tolist()) == list(range(1797))
    assert SOURCE_BOUNDS[0] == 0
    assert SOURCE_BOUNDS[-1] == 1797
    images, _ = _sources()
    # No digit occurs twice in the archive, else disjoint indices would not mean disjoint handwriting.
    assert len(np.unique(images.reshape(1797, -1), axis=0)) == 1797


def test_overlay_takes_the_brighter_pixel_and_stays_on_its_offset():
    first = np.full((1, 8, 8), 100, np.uint8)
    second = np.full((1, 8, 8), 50, np.uint8)
    second[0, 0, 0] = 200
    canvas = pairs.overlay(first, second, np.array([[1, 2]]), np.array([[4, 3]]), 12)[0, ..., 0]
    expected = np.zeros((12, 12), np.uint8)
    expected[4:12, 3:11] = 50
    expected[1:9, 2:10] = 100
    expected[4, 3] = 200
    np.testing.assert_array_equal(canvas, expected)


def test_offsets_cover_their_range_and_nothing_else():
    lit = (np.full((1, 8, 8), 9, np.uint8), np.zeros(1, np.int32))
    dark = (np.zeros((2, 8, 8), np.uint8), np.arange(1, 3, dtype=np.int32))
    for sources, choices in (((lit, dark), LAYOUT.first), ((dark, lit), LAYOUT.second)):
        layout = pairs.Layout(12, LAYOUT.first, LAYOUT.second, distinct=False)
        images = pairs.make_split(pairs.stream(0), *sources, 500, layout).inputs[..., 0]
        corners = {tuple(np.argwhere(image)[0].tolist()) for image in images}
        assert corners == {(row, column) for row in choices for column in choices}


def test_digits_are_the_same_for_a_seed_on_every_platform():
    assert digest(data.digits(**SMALL)) == "fa3bc58c51229cac889add835bfcec9c4b793191e0cacf8e9b5d1c0920883f66"


def test_digits_differ_between_seeds():
    assert digest(data.digits(0, **SMALL)) != digest(data.digits(1, **SMALL))


def test_test_pairs_do_not_depend_on_the_number_of_training_pairs():
    few, many = (data.digits(num_train=n, num_validation=10, num_test=50).splits["test"] for n in (10, 1000))
    np.testing.assert_array_equal(few.inputs, many.inputs)


def test_every_first_image_is_used_equally_often_up_to_one():
    labels = np.arange(7) % 3
    first, second = pairs.draw_pairs(pairs.stream(0), labels, labels, 45, distinct=True)
    counts = np.bincount(first, minlength=7)
    assert counts.max() - counts.min() <= 1
    assert (labels[first] != labels[second]).all()


def test_pairs_of_one_class_that_must_differ_are_refused():
    with pytest.raises(ValueError, match="at least two classes"):
        pairs.draw_pairs(pairs.stream(0), np.zeros(3), np.zeros(3), 4, distinct=True)


@pytest.mark.parametrize("arguments", [{"num_train": 0}, {"num_test": 2.5}, {"seed": -1}, {"seed": "a"}])
def test_senseless_sizes_and_seeds_are_refused(arguments):
    with pytest.raises(ValueError, match="must be an integer of at least"):
        data.digits(**arguments)
