import hashlib

import numpy as np
import pytest

from mtljax import data
from mtljax.data import tfds_source

COUNTS = {"num_train": 300, "num_validation": 100, "num_test": 100}


@pytest.fixture
def coded_sources(monkeypatch):
    """Stands in for TFDS: every image is uniform, with a grey level of its own, so that pixels name their source.

    MNIST's training images have the levels 1 to 100, its test images 101 to 200; Fashion-MNIST's are 50 higher.
    """

    def find(name, data_dir=None, *, download=True):
        return name

    def read(name, split, features):
        assert features == ("image", "label")
        grey = np.arange(1, 101) + (100 if split == "test" else 0) + (50 if name == "fashion_mnist" else 0)
        image = np.broadcast_to(grey.astype(np.uint8)[:, None, None, None], (100, 28, 28, 1))
        return {"image": image, "label": (grey % 10).astype(np.int32)}

    monkeypatch.setattr(tfds_source, "find", find)
    monkeypatch.setattr(tfds_source, "read", read)


def offsets(image):
    """Row and column of the first image, then of the second: the first bounds the light from above, left, and so on."""
    rows, columns = np.nonzero(image)
    return rows.min(), columns.min(), rows.max() + 1 - 28, columns.max() + 1 - 28


def levels(image):
    """Grey levels of the two images, from the corner that each has to itself."""
    top, left, bottom, right = offsets(image)
    return int(image[top, left]), int(image[bottom + 27, right + 27])


@pytest.mark.parametrize("name", ["multi_mnist", "multi_fashion"])
def test_pairs_lie_where_lin_et_al_put_them(coded_sources, name):
    made = data.load(name, **COUNTS)
    images = made.splits["train"].inputs
    assert images.shape == (300, 36, 36, 1)
    assert images.dtype == np.uint8
    boxes = np.array([offsets(image) for image in images[..., 0]])
    assert set(boxes[:, 0]) == set(boxes[:, 1]) == set(range(5))
    assert set(boxes[:, 2]) == set(boxes[:, 3]) == set(range(4, 9))


def test_overlap_is_the_pixel_maximum(coded_sources):
    made = data.load("multi_mnist", **COUNTS)
    for image in made.splits["train"].inputs[..., 0]:
        top, left, bottom, right = offsets(image)
        first, second = levels(image)
        expected = np.zeros((36, 36), np.uint8)
        expected[top : top + 28, left : left + 28] = first
        window = expected[bottom : bottom + 28, right : right + 28]
        np.maximum(window, second, out=window)
        np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize(
    ("name", "shift"), [("multi_mnist", (0, 0)), ("multi_fashion", (50, 50)), ("fashion_and_mnist", (0, 50))]
)
def test_splits_share_no_source_image(coded_sources, name, shift):
    allowed = {"train": range(1, 91), "validation": range(91, 101), "test": range(101, 201)}
    made = data.load(name, **COUNTS)
    for split, examples in made.splits.items():
        for n, image in enumerate(examples.inputs[..., 0]):
            if offsets(image) == (4, 4, 4, 4):
                continue  # one hides the other
            first, second = levels(image)
            assert first - shift[0] in allowed[split]
            assert second - shift[1] in allowed[split]
            assert examples.targets["left"][n] == first % 10
            assert examples.targets["right"][n] == second % 10


def test_classes_differ_except_between_fashion_and_mnist(coded_sources):
    for name in ("multi_mnist", "multi_fashion"):
        for split in data.load(name, **COUNTS).splits.values():
            assert (split.targets["left"] != split.targets["right"]).all()
    mixed = data.load("fashion_and_mnist", **COUNTS).splits["train"].targets
    assert (mixed["left"] == mixed["right"]).any()


def test_absent_data_says_what_to_set(no_data):
    with pytest.raises(FileNotFoundError, match=r"'mnist' is not in .*no network.*set MTLJAX_DATA"):
        data.load("multi_mnist")


def test_multi_mnist_from_the_real_mnist(tfds_dir):
    made = data.multi_mnist(num_train=2000, num_validation=500, num_test=500)
    content = hashlib.sha256()
    for split in made.splits.values():
        assert set(split.targets["left"].tolist()) == set(range(10))
        assert (split.targets["left"] != split.targets["right"]).all()
        for array in (split.inputs, split.targets["left"], split.targets["right"]):
            content.update(np.ascontiguousarray(array))
    assert made.splits["train"].inputs.shape == (2000, 36, 36, 1)
    assert content.hexdigest() == "d140f023bd9f818a85c42bb61bb7bb005ea715a28a8233a0351126aa1c981626"
