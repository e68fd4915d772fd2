"""Corruptions of real digits: repeatable, in range, farther with severity; JPEG against Pillow, photons by moments."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import mostly_slow
from PIL import Image

import mtljax as mtl
from mtljax.analysis import corrupt
from mtljax.analysis.corruptions import FAMILIES, SEVERITIES, corrupt_each, filters, names, sheet
from mtljax.analysis.corruptions.digital import _QUALITIES
from mtljax.cli import main

KEY = jax.random.PRNGKey(3)


@pytest.fixture(scope="module")
def digits():
    """48 pairs of handwritten digits, (48, 12, 12, 1) uint8."""
    return mtl.data.load("digits", num_train=1, num_validation=1, num_test=48).splits["test"].inputs


@pytest.fixture(scope="module")
def photos():
    """Four smooth colour images, (4, 36, 28, 3), from 0 to 1."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(size=(4, 6, 5, 3)).astype(np.float32)
    return np.asarray(jax.image.resize(coarse, (4, 36, 28, 3), "cubic")).clip(0, 1)


def test_there_are_fifteen_corruptions_in_four_families():
    assert len(names()) == 15
    assert list(FAMILIES) == ["noise", "blur", "weather", "digital"]
    assert [name for family in FAMILIES.values() for name in family] == list(names())


@pytest.fixture(scope="module")
def moved(digits):
    return sheet.distances(KEY, digits)


@pytest.mark.parametrize("name", names())
def test_on_digits_each_severity_lies_farther_from_the_clean_image(moved, name):
    assert 0.002 < moved[name][0] < 0.2
    assert (np.diff(moved[name]) > 0.002).all(), moved[name]


@pytest.fixture(scope="module")
def moved_photos(photos):
    return sheet.distances(KEY, photos)


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_on_larger_colour_images_each_severity_lies_farther_too(moved_photos, name):
    assert moved_photos[name][0] > 0.001
    assert (np.diff(moved_photos[name]) > 0.001).all(), moved_photos[name]


@pytest.mark.parametrize("name", names())
def test_images_depend_on_key_and_place_alone_and_keep_shape_dtype_and_range(digits, name):
    made = np.asarray(corrupt(KEY, digits, name, 5))
    assert (made.dtype, made.shape) == (np.uint8, digits.shape)
    np.testing.assert_array_equal(made, corrupt(KEY, digits, name, 5))
    each = corrupt_each(KEY, digits, np.full(48, names().index(name)), np.full(48, 5))
    np.testing.assert_array_equal(each, made)
    random = name not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    other = corrupt(jax.random.PRNGKey(4), digits, name, 5)
    assert bool((np.asarray(other) != made).any()) == random


@pytest.mark.parametrize("name", mostly_slow(names(), ("brightness",)))
def test_colour_images_of_floats_stay_within_zero_and_one(photos, name):
    for severity in SEVERITIES:
        made = np.asarray(corrupt(KEY, photos, name, severity))
        assert (made.dtype, made.shape) == (np.float32, photos.shape)
        assert made.min() >= 0
        assert made.max() <= 1
        assert np.abs(made - photos).max() > 0.01
    assert np.isfinite(np.asarray(corrupt(KEY, np.zeros_like(photos), name, 5))).all()
    assert np.isfinite(np.asarray(corrupt(KEY, np.ones_like(photos), name, 5))).all()


@pytest.mark.parametrize("name", mostly_slow(names(), ("gaussian_noise",)))
def test_jit_and_vmap_change_nothing(digits, name):
    images = jnp.asarray(digits[:6]) / 255
    severities = jnp.array([1, 2, 3, 4, 5, 1])
    plain = corrupt(KEY, images, name, severities)
    jitted = jax.jit(lambda key, x, s: corrupt(key, x, name, s))(KEY, images, severities)
    np.testing.assert_allclose(jitted, plain, atol=1e-6)
    keys = jax.random.split(KEY, 6)
    mapped = jax.vmap(lambda key, x, s: corrupt(key, x, name, s))(keys, images, severities)
    alone = [corrupt(*each) for each in zip(keys, images, [name] * 6, severities.tolist(), strict=True)]
    np.testing.assert_allclose(mapped, np.stack(alone), atol=1e-6)


def test_a_batch_may_mix_severities_and_a_part_of_it_is_the_same(digits):
    mixed = corrupt(KEY, digits, "gaussian_noise", np.arange(48) % 5 + 1)
    np.testing.assert_array_equal(mixed[2::5], corrupt(KEY, digits, "gaussian_noise", 3)[2::5])
    np.testing.assert_array_equal(mixed[:7], corrupt(KEY, digits[:7], "gaussian_noise", np.arange(7) % 5 + 1))


def test_noise_has_the_moments_it_says():
    grey = np.full((40, 20, 20, 1), 0.4, np.float32)
    photons = np.asarray(corrupt(KEY, grey, "shot_noise", 4)) * 18
    np.testing.assert_allclose([photons.mean(), photons.var()], 0.4 * 18, rtol=0.03)
    np.testing.assert_allclose(photons, np.round(photons), atol=1e-4)
    assert not np.asarray(corrupt(KEY, 0 * grey, "shot_noise", 5)).any()
    normal = np.asarray(corrupt(KEY, grey, "gaussian_noise", 2)) - 0.4
    np.testing.assert_allclose([normal.mean(), normal.std()], [0, 0.08], atol=0.002)
    hit = np.asarray(corrupt(KEY, grey, "impulse_noise", 5))
    np.testing.assert_allclose([(hit == 0).mean(), (hit == 1).mean()], 0.07, atol=0.006)


def test_blurs_keep_the_light_of_a_point():
    point = np.zeros((64, 64, 1), np.float32)
    point[32, 32] = 1
    for name in ("defocus_blur", "motion_blur", "glass_blur"):
        made = np.asarray(corrupt(KEY, point, name, 3))
        assert made.max() < 0.5
        if name != "glass_blur":
            np.testing.assert_allclose(made.sum(), 1, rtol=1e-4)
    rows, columns = np.nonzero(np.asarray(corrupt(KEY, point, "defocus_blur", 3))[..., 0] > 1e-4)
    assert np.abs(rows - 32).max() == np.abs(columns - 32).max() == 4  # a radius of 1.8 at 32 pixels, and a half


def test_filters_convolve_and_warps_read_at_displaced_places():
    image = np.random.default_rng(1).uniform(size=(9, 11, 2)).astype(np.float32)
    kernel = np.random.default_rng(2).uniform(size=(5, 5)).astype(np.float32)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")
    expected = sum(kernel[i, j] * padded[4 - i : 13 - i, 4 - j : 15 - j] for i in range(5) for j in range(5))
    np.testing.assert_allclose(filters.filtered(jnp.asarray(image), jnp.asarray(kernel)), expected, atol=1e-4)
    shifted = filters.warped(jnp.asarray(image), jnp.full((9, 11), 1.0), jnp.full((9, 11), -0.5))
    np.testing.assert_allclose(shifted[0, 1], (image[1, 0] + image[1, 1]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(filters.warped(jnp.asarray(image), jnp.zeros((9, 11)), jnp.zeros((9, 11))), image)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("severity", [1, 5])
def test_jpeg_is_that_of_the_reference_codec(photos, channels, severity):
    """Up to a grey level in most pixels: Pillow computes in integers, and what lies half-way may round otherwise."""
    images = np.round(255 * photos[..., :channels]).astype(np.uint8)
    ours = np.asarray(corrupt(KEY, images, "jpeg_compression", severity)).astype(int)
    for image, found in zip(images, ours, strict=True):
        stream = io.BytesIO()
        quality = _QUALITIES[severity - 1]
        Image.fromarray(image.squeeze()).save(stream, "JPEG", quality=quality, subsampling=2 if channels == 3 else 0)
        decoded = np.asarray(Image.open(stream)).reshape(image.shape).astype(int)
        assert np.median(np.abs(found - decoded)) <= (0 if channels == 1 else 1)
        assert np.abs(found - decoded).mean() < 0.3 * np.abs(found - image).mean()


def test_pixelate_averages_and_contrast_keeps_the_mean(photos):
    made = np.asarray(corrupt(KEY, photos, "pixelate", 5))
    blocks = photos.reshape(4, 9, 4, 7, 4, 3).mean((2, 4))
    np.testing.assert_allclose(made, blocks.repeat(4, 1).repeat(4, 2), atol=1e-6)
    np.testing.assert_allclose(corrupt(KEY, photos, "contrast", 4).mean((1, 2)), photos.mean((1, 2)), atol=1e-5)


def test_brightness_keeps_hue_and_saturation(photos):
    made, clean = np.asarray(corrupt(KEY, photos, "brightness", 2)), photos
    np.testing.assert_allclose(made.max(-1), np.minimum(clean.max(-1) + 0.2, 1), atol=1e-6)
    np.testing.assert_allclose(made * clean.max(-1)[..., None], clean * made.max(-1)[..., None], atol=1e-6)


def test_the_sheet_shows_all_corruptions_with_their_names(digits, monkeypatch):
    monkeypatch.setattr(sheet, "corrupt", lambda key, image, name, severity: image)
    figure = sheet.plot_corruptions(KEY, digits[0])
    titles = {axes.get_title(loc="left") for axes in figure.axes}
    assert titles == {f"{name.replace('_', ' ')}: clean, 1 to 5" for name in names()}
    assert figure.axes[0].images[0].get_array().shape == (12, 6 * 13, 3)


@pytest.mark.slow
def test_the_command_prints_distances_and_draws_the_sheet(tmp_path, capsys):
    assert main(["analyze", "corruptions", "--figure", str(tmp_path / "sheet.png")]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in names())
    assert (tmp_path / "sheet.png").stat().st_size > 20_000


@pytest.mark.parametrize(
    ("images", "name", "severity", "message"),
    [
        ((8, 8, 1), "fogg", 1, "unknown corruption 'fogg': did you mean 'fog'"),
        ((8, 8, 1), "fog", 0, "severity must be an integer from 1 to 5, got 0"),
        ((8, 8, 1), "fog", 2.5, "from 1 to 5, got 2.5"),
        ((2, 8, 8, 1), "fog", np.array([1, 2, 3]), "one severity, or one for each of 2 images, got \\(3,\\)"),
        ((8, 8), "fog", 1, "are for images"),
        ((8, 8, 2), "fog", 1, "are for images"),
        ((7, 9, 1), "fog", 1, "at least 8 pixels a side"),
    ],
)
def test_what_cannot_be_corrupted_is_one_sentence(images, name, severity, message):
    with pytest.raises(ValueError, match=message):
        corrupt(KEY, np.zeros(images, np.float32), name, severity)
    if images == (8, 8):
        with pytest.raises(ValueError, match="int32 of shape"):
            corrupt(KEY, np.zeros((8, 8, 1), np.int32), name, severity)


@pytest.mark.parametrize(
    ("which", "severities", "message"),
    [
        ([0, 1], [1, 0], r"severity must be an integer from 1 to 5"),
        ([0, 15], [1, 1], "indices from 0 to 14"),
        ([0], [1, 1], "for each of 2 images, got 1 and 2"),
    ],
)
def test_ways_to_corrupt_that_do_not_exist_are_one_sentence(which, severities, message):
    with pytest.raises(ValueError, match=message):
        corrupt_each(KEY, np.zeros((2, 8, 8, 1), np.uint8), np.array(which), np.array(severities))
