"""Encoders and the multi-task model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mtljax.models import MLP, LeNet, MultiTaskModel, ResNet18, encoder
from mtljax.models.convolution import tiled_convolution
from mtljax.models.pooling import max_pool_2x2, max_pool_3x3_stride_2, shrunk


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_lenet_has_the_papers_layers():
    params = LeNet().init(jax.random.PRNGKey(0), jnp.zeros((1, 36, 36, 1)))["params"]
    assert params["Conv_0"]["kernel"].shape == (9, 9, 1, 10)
    assert params["Conv_1"]["kernel"].shape == (5, 5, 10, 20)
    # 36 -> 28 -> 14 -> 10 -> 5: the 5 x 5 x 20 features of ParetoMTL's LeNet.
    assert params["Dense_0"]["kernel"].shape == (500, 50)


def test_resnet18_has_the_published_number_of_parameters():
    """torchvision's resnet18 without its final layer: 11,176,512 for three input channels."""
    variables = jax.eval_shape(
        functools.partial(ResNet18(features=0).init, train=False), jax.random.PRNGKey(0), jnp.zeros((1, 64, 64, 3))
    )
    assert count(variables["params"]) == 11_176_512


def test_shrinking_averages_squares_of_pixels():
    x = jax.random.normal(jax.random.PRNGKey(0), (2, 9, 8, 3))
    np.testing.assert_allclose(shrunk(x, 4), nn.avg_pool(x[:, :8], (4, 4), (4, 4)), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(shrunk(x, 1), x)
    params = jax.eval_shape(MLP(shrink=2).init, jax.random.PRNGKey(0), jnp.zeros((1, 36, 36, 1)))["params"]
    assert params["Dense_0"]["kernel"].shape == (18 * 18, 128)
    with pytest.raises(ValueError, match="shrink must be from 1 to the size of the image, 9 x 8, got 9"):
        shrunk(x, 9)
    with pytest.raises(ValueError, match=r"shrink averages pixels of images .*, got inputs of shape \(5, 7\)"):
        shrunk(jnp.zeros((5, 7)), 2)


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (1, 7, 9, 2)])
def test_pooling_equals_reduce_window(shape):
    x = jax.random.normal(jax.random.PRNGKey(0), shape)
    np.testing.assert_array_equal(max_pool_2x2(x), nn.max_pool(x, (2, 2), (2, 2)))
    expected = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    np.testing.assert_array_equal(max_pool_3x3_stride_2(x), expected)


@pytest.mark.parametrize("pool", [max_pool_2x2, max_pool_3x3_stride_2])
def test_pooling_has_the_gradient_of_reduce_window(pool):
    x = jax.random.normal(jax.random.PRNGKey(1), (2, 8, 8, 3))
    window = (2, 2) if pool is max_pool_2x2 else (3, 3)
    padding = ((0, 0), (0, 0)) if pool is max_pool_2x2 else ((1, 1), (1, 1))
    ours = jax.grad(lambda x: jnp.sum(jnp.sin(pool(x))))(x)
    theirs = jax.grad(lambda x: jnp.sum(jnp.sin(nn.max_pool(x, window, (2, 2), padding))))(x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_pooling_gives_the_gradient_of_equal_pixels_to_the_first():
    gradient = jax.grad(lambda x: jnp.sum(max_pool_2x2(x)))(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient.ravel(), [1, 0, 0, 0])


CONVOLUTIONS = {  # input (H, W, C), kernel (h, w, O), padding
    "lenet 1": ((36, 36, 1), (9, 9, 10), "VALID"),
    "lenet 2": ((14, 14, 10), (5, 5, 20), "VALID"),
    "tiles reach beyond the image": ((7, 11, 3), (5, 4, 2), "SAME"),
    "one pixel out": ((5, 5, 2), (5, 5, 3), "VALID"),
    "one pixel kernel": ((6, 9, 2), (1, 1, 3), "VALID"),
    "uneven padding": ((9, 13, 2), (2, 3, 3), ((1, 2), (0, 3))),
    "kernel larger than the image": ((4, 4, 2), (7, 7, 3), "SAME"),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_tiled_convolution_and_its_gradients_are_those_of_lax(case):
    shape, (rows, columns, features), padding = CONVOLUTIONS[case]
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel = rng.normal(size=(3, *shape)), rng.normal(size=(rows, columns, shape[-1], features))
        ours, theirs = layers((1, 1), padding)
        cotangent = rng.normal(size=jax.eval_shape(theirs, x, kernel).shape)

        @functools.partial(jax.jit, static_argnums=0)
        def forward_and_back(layer, x, kernel, cotangent):
            out, pullback = jax.vjp(layer, x, kernel)
            return out, *pullback(cotangent)

        for a, b in zip(*(forward_and_back(layer, x, kernel, cotangent) for layer in (ours, theirs)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def layers(strides, padding, **options):
    """The two ways to convolve."""
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")} | options
    return [
        lambda x, kernel, way=way: way(x, kernel, strides, padding, **options)
        for way in (tiled_convolution, jax.lax.conv_general_dilated)
    ]


@pytest.mark.parametrize(
    ("strides", "padding", "options"),
    [
        ((2, 1), "SAME", {}),
        ((1, 1), "VALID", {"rhs_dilation": (2, 1)}),
        ((1, 1), "SAME", {"rhs_dilation": (2, 1)}),
        ((1, 1), ((-1, 1), (0, 0)), {}),
        ((1, 1), "SAME", {"preferred_element_type": jnp.float32}),
        ((1, 1), ((1, 1), (1, 2)), {"lhs_dilation": (1, 2)}),
        ((1, 1), "VALID", {"feature_group_count": 2}),
    ],
)
def test_what_is_not_tiled_is_left_to_lax(strides, padding, options):
    x = jax.random.normal(jax.random.PRNGKey(0), (2, 9, 8, 4))
    kernel = jax.random.normal(jax.random.PRNGKey(1), (3, 3, 4 // options.get("feature_group_count", 1), 6))
    ours, theirs = (jax.make_jaxpr(layer)(x, kernel) for layer in layers(strides, padding, **options))
    assert str(ours) == str(theirs)


def test_lenet_is_the_same_network_on_every_backend(monkeypatch):
    x = jax.random.normal(jax.random.PRNGKey(0), (4, 12, 12, 1))
    net = LeNet(channels=(4, 6), kernels=(3, 3), padding="SAME", features=8)
    params = jax.jit(net.init)(jax.random.PRNGKey(1), x)
    tiled = jax.jit(net.apply)(params, x)
    assert "conv_general_dilated" not in str(jax.make_jaxpr(net.apply)(params, x))
    mapped = jax.jit(jax.vmap(net.apply, in_axes=(None, 0)))(params, x[:, None])[:, 0]
    np.testing.assert_allclose(mapped, tiled, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "conv_general_dilated" in str(jax.make_jaxpr(net.apply)(params, x))
    again = jax.jit(lambda: net.init(jax.random.PRNGKey(1), x))()
    jax.tree.map(np.testing.assert_array_equal, params, again)
    np.testing.assert_allclose(jax.jit(lambda: net.apply(params, x))(), tiled, rtol=1e-5, atol=1e-6)


def model(tasks=("a", "b")):
    return MultiTaskModel(encoder("mlp", features=(8,)), {task: nn.Dense(3) for task in tasks})


def test_parameters_are_shared_and_heads():
    params, model_state = model().init(jax.random.PRNGKey(0), jnp.zeros((1, 4)))
    assert set(params) == {"shared", "heads"}
    assert set(params["heads"]) == {"a", "b"}
    assert model_state == {}


def test_a_head_starts_the_same_whatever_the_other_tasks():
    both, _ = model().init(jax.random.PRNGKey(0), jnp.zeros((1, 4)))
    alone, _ = model(("b",)).init(jax.random.PRNGKey(0), jnp.zeros((1, 4)))
    np.testing.assert_array_equal(both["heads"]["b"]["kernel"], alone["heads"]["b"]["kernel"])
    np.testing.assert_array_equal(both["shared"]["Dense_0"]["kernel"], alone["shared"]["Dense_0"]["kernel"])
    assert np.any(both["heads"]["a"]["kernel"] != both["heads"]["b"]["kernel"])


def test_images_are_scaled_to_one():
    params, state = model().init(jax.random.PRNGKey(0), jnp.zeros((1, 4), jnp.uint8))
    as_bytes, _ = model().apply(params, state, jnp.full((2, 4), 255, jnp.uint8))
    as_floats, _ = model().apply(params, state, jnp.ones((2, 4)))
    np.testing.assert_allclose(as_bytes["a"], as_floats["a"], rtol=1e-6)


def test_dropout_acts_in_training_only():
    dropping = MultiTaskModel(encoder("mlp", features=(64,), dropout=0.5), {"a": nn.Dense(1)})
    x = jnp.ones((4, 8))
    params, state = dropping.init(jax.random.PRNGKey(0), x)
    runs = [dropping.apply(params, state, x, train=True, key=jax.random.PRNGKey(k))[0]["a"] for k in (0, 1)]
    assert np.any(runs[0] != runs[1])
    still = [dropping.apply(params, state, x)[0]["a"] for _ in range(2)]
    np.testing.assert_array_equal(still[0], still[1])
