"""Encoders and the multi-task model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mtljax.models import MLP, LeNet, MultiTaskModel, ResNet18, encoder
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
