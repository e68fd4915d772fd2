"""How alike gradients are: of tasks, of examples, in angle, length and signs; against definitions in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtljax as mtl
from mtljax.analysis import conflicts


def test_cosines_are_of_the_shared_parameters_alone():
    params = {"shared": jnp.zeros(2), "a": jnp.array(0.0), "b": jnp.array(0.0)}

    def losses_fn(p, x):
        return {"a": p["shared"] @ x[0] + 9 * p["a"], "b": p["shared"] @ x[1] + 9 * p["b"]}

    x = jnp.array([[1.0, 0.0], [-3.0, 4.0]])
    np.testing.assert_allclose(mtl.analysis.cosines(losses_fn, params, x), [[1, -0.6], [-0.6, 1]], rtol=1e-6)


def test_the_share_counts_the_batches_with_a_negative_cosine():
    values = np.array([-0.5, 0.2, -0.1, 0.0])
    batches = np.array([[[1, c], [c, 1]] for c in values])
    np.testing.assert_array_equal(mtl.analysis.conflict_share(batches), [[0, 0.5], [0.5, 0]])


def test_one_matrix_is_no_sequence_of_batches():
    with pytest.raises(ValueError, match=r"N mini-batches, \(N, K, K\), got shape \(2, 2\)"):
        mtl.analysis.conflict_share(np.eye(2))


def network_losses(params, x, targets):
    z = jnp.tanh(x @ params["body"]["kernel"] + params["body"]["bias"])
    z = jnp.tanh(z @ params["top"]["kernel"])
    return {task: jnp.mean((z @ params[task] - targets[task]) ** 2) for task in ("b", "a", "c")}


@pytest.fixture(scope="module")
def network():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    params = {"body": {"kernel": draw(4, 6), "bias": draw(6)}, "top": {"kernel": draw(6, 5)}}
    params |= {task: draw(5) for task in "abc"}
    return params, draw(10, 4), {"a": draw(10), "b": 30 * draw(10), "c": draw(10)}


@pytest.fixture(scope="module")
def rows(network):
    """All gradients over the shared parameters, one task and example at a time, in NumPy: (examples, tasks, P)."""
    params, x, targets = network
    shared = {name: params[name] for name in ("body", "top")}

    def loss(shared, heads, task, x, targets):
        return network_losses(shared | heads, x, targets)[task]

    grad = jax.jit(jax.grad(loss), static_argnums=2)
    heads = {task: params[task] for task in "abc"}
    examples = [(x[i : i + 1], {task: targets[task][i : i + 1] for task in "abc"}) for i in range(10)]
    found = [[jax.tree.leaves(grad(shared, heads, task, *example)) for task in "abc"] for example in examples]
    return np.array([[np.concatenate([np.ravel(leaf) for leaf in leaves]) for leaves in each] for each in found])


@pytest.fixture(scope="module")
def found(network):
    return mtl.analysis.sample_conflicts(network_losses, *network, samples=10, argnums=(0, 1))


def measures(g, h):
    g, h = np.asarray(g, np.float64), np.asarray(h, np.float64)
    a, b = np.linalg.norm(g), np.linalg.norm(h)
    return g @ h / (a * b), 2 * a * b / (a**2 + b**2), np.mean(g * h < 0)


def test_similarities_are_those_of_the_definitions_in_any_range():
    rows = np.random.default_rng(1).normal(size=(4, 50)) * np.array([1.0, 7.0, 2.0, 0.5])[:, None]
    expected = np.array([[measures(g, h) for h in rows] for g in rows])
    for size in (1.0, 1e-30, 1e15):
        tree = {
            "a": jnp.asarray(rows[:, :20].reshape(4, 4, 5) * size, jnp.float32),
            "b": jnp.asarray(rows[:, 20:] * size),
        }
        whole = mtl.analysis.similarities(tree).whole
        for k, measure in enumerate(whole[:3]):
            np.testing.assert_allclose(measure, expected[..., k], rtol=2e-5, atol=2e-6)


def test_long_gradients_are_compared_block_by_block_to_the_last_entry():
    rows = np.random.default_rng(3).normal(size=(3, 40_000)) * np.array([1.0, 1e3, 1e-3])[:, None]
    rows[:, 32_768:] += 5 * rows[0, 32_768:] / np.abs(rows[0]).max()  # what is left after the blocks counts
    whole = mtl.analysis.similarities(jnp.asarray(rows, jnp.float32)).whole
    expected = np.array([[measures(g, h) for h in rows] for g in rows])
    for k, measure in enumerate(whole[:3]):
        np.testing.assert_allclose(measure, expected[..., k], rtol=1e-4, atol=1e-5)
    left = mtl.analysis.similarity.pairwise([jnp.asarray(rows[:2])], [jnp.asarray(rows[2:])], ("a",), same=False).whole
    for k, measure in enumerate(left[:3]):
        np.testing.assert_allclose(measure, expected[:2, 2:, k], rtol=1e-4, atol=1e-5)


def test_a_gradient_is_like_itself_and_pairs_are_symmetric(found):
    for whole in (found.between_tasks.whole, found.between_samples.whole):
        size = whole.cosine.shape[-1]
        for name, on_itself, low, high in (("cosine", 1, -1, 1), ("magnitude", 1, 0, 1), ("sign_conflict", 0, 0, 1)):
            values = np.asarray(getattr(whole, name))
            np.testing.assert_array_equal(values[..., np.arange(size), np.arange(size)], on_itself)
            np.testing.assert_array_equal(values, np.swapaxes(values, -1, -2))
            assert low <= values.min() <= values.max() <= high


def test_identities_hold_where_nothing_is_known_to_be_the_same():
    """`similarities` knows that its diagonal is 1; here a gradient meets itself as if it were another."""
    rows = np.random.default_rng(4).normal(size=(3, 50)).astype(np.float32) * np.array([[1.0], [1e3], [1e-3]])
    whole = mtl.analysis.similarity.pairwise([jnp.asarray(rows)], [jnp.asarray(rows)], ("a",), same=False).whole
    for values, on_itself in zip(whole[:3], (1, 1, 0), strict=True):
        np.testing.assert_allclose(np.diag(values), on_itself, rtol=1e-6)
        np.testing.assert_allclose(values, values.T, rtol=1e-5, atol=1e-6)


def test_opposite_gradients_conflict_everywhere_and_a_zero_one_says_nothing():
    whole = mtl.analysis.similarities(jnp.array([[1.0, -2.0], [-3.0, 6.0], [0.0, 0.0]])).whole
    np.testing.assert_allclose(whole.cosine, [[1, -1, 0], [-1, 1, 0], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(whole.magnitude, [[1, 0.6, 0], [0.6, 1, 0], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(whole.sign_conflict, [[0, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert mtl.analysis.spread(whole)["cosine"] == pytest.approx((-1, 0, -1, -1, 1))
    nothing = mtl.analysis.spread(mtl.analysis.similarities(jnp.zeros((2, 3))).whole)["cosine"]
    assert nothing.pairs == 0
    assert np.isnan(nothing.mean)


def test_sample_gradients_average_to_the_batch_gradient(network):
    each = mtl.analysis.sample_gradients(network_losses, *network, argnums=(0, 1))
    batch = jax.jit(lambda *args: mtl.task_gradients(network_losses, *args)[1].jacobian())(*network)
    for one, whole in zip(jax.tree.leaves(each), jax.tree.leaves(batch), strict=True):
        assert one.shape == (10, *whole.shape)
        np.testing.assert_allclose(one.mean(axis=0), whole, rtol=1e-4, atol=1e-4)


def test_conflicts_between_tasks_and_samples_are_those_of_single_gradients(found, rows):
    for i, (k, m) in ((0, (0, 1)), (7, (1, 2))):
        got = [measure[i, k, m] for measure in found.between_tasks.whole[:3]]
        np.testing.assert_allclose(got, measures(rows[i, k], rows[i, m]), rtol=1e-3, atol=1e-5)
    for k, (i, j) in ((0, (0, 9)), (2, (3, 4))):
        got = [measure[k, i, j] for measure in found.between_samples.whole[:3]]
        np.testing.assert_allclose(got, measures(rows[i, k], rows[j, k]), rtol=1e-3, atol=1e-5)


def test_layers_make_up_the_whole(found, rows):
    assert list(found.between_tasks.layers) == ["body", "top"]
    sizes, cut = {"body": 30, "top": 30}, 30
    whole, layers = found.between_samples.whole, found.between_samples.layers
    mixed = sum(np.asarray(layers[name].sign_conflict) * size for name, size in sizes.items()) / sum(sizes.values())
    np.testing.assert_allclose(whole.sign_conflict, mixed, rtol=1e-6)
    g = np.moveaxis(rows, 0, 1).astype(np.float64)  # (tasks, examples, P)
    lengths = {"body": np.linalg.norm(g[..., :cut], axis=-1), "top": np.linalg.norm(g[..., cut:], axis=-1)}
    dots = sum(np.asarray(layers[n].cosine) * lengths[n][:, :, None] * lengths[n][:, None, :] for n in sizes)
    total = np.sqrt(lengths["body"] ** 2 + lengths["top"] ** 2)
    np.testing.assert_allclose(whole.cosine, dots / (total[:, :, None] * total[:, None, :]), rtol=1e-3, atol=1e-4)


def test_less_memory_gives_the_same_numbers(network, found, monkeypatch):
    bytes_each, gradients_of, held = 3 * 60 * 4, conflicts.gradients_of, []

    def watched(*args):
        gradients = gradients_of(*args)

        def rows(params, args, block, drawn):
            held.append(len(block))
            return gradients.rows(params, args, block, drawn)

        return gradients._replace(rows=rows)

    # 3 tasks, 60 shared parameters; not all ten examples, so two blocks at once, of four examples at most
    monkeypatch.setattr(conflicts, "gradients_of", watched)
    small = mtl.analysis.sample_conflicts(network_losses, *network, samples=10, argnums=(0, 1), memory=9 * bytes_each)
    for less, more in zip(jax.tree.leaves(small), jax.tree.leaves(found), strict=True):
        assert less.shape == more.shape
        np.testing.assert_allclose(less, more, rtol=1e-4, atol=1e-5)
    assert held == [4, 4, 2, 4, 2, 2]  # each block, then those after it


@pytest.mark.slow
def test_a_subsample_is_of_the_examples_and_tasks_asked_for_also_in_jit(network, found):
    @jax.jit
    def probe(params, x, targets, key):
        return mtl.analysis.sample_conflicts(
            network_losses, params, x, targets, key=key, samples=4, tasks=2, argnums=(0, 1)
        )

    drawn = probe(*network, jax.random.PRNGKey(5))
    assert drawn.between_tasks.whole.cosine.shape == (4, 2, 2)
    assert drawn.between_samples.whole.cosine.shape == (2, 4, 4)
    all_pairs = np.asarray(found.between_tasks.whole.cosine)
    for cosine in np.asarray(drawn.between_tasks.whole.cosine)[:, 0, 1]:
        assert np.abs(all_pairs - cosine).min() < 1e-5
    assert (drawn.between_tasks.whole.cosine != probe(*network, jax.random.PRNGKey(6)).between_tasks.whole.cosine).any()


def test_spread_of_all_layers_together_is_refused(found):
    with pytest.raises(ValueError, match=r"result\.between_tasks\.whole"):
        mtl.analysis.spread(found)


def test_spread_counts_each_pair_once_and_puts_steps_together(found):
    whole = found.between_samples.whole
    upper = np.triu_indices(10, 1)
    values = np.asarray(whole.cosine)[:, upper[0], upper[1]].ravel()
    spread = mtl.analysis.spread(whole)["cosine"]
    assert spread.pairs == 3 * 45
    expected = (values.mean(), values.std(), *np.percentile(values, (2.5, 97.5)))
    np.testing.assert_allclose(spread[:4], expected, rtol=1e-5)
    twice = mtl.analysis.spread([whole, whole])["cosine"]
    np.testing.assert_allclose(twice[:2], spread[:2], rtol=1e-9)
    assert twice.pairs == 2 * spread.pairs


def test_tasks_of_unequal_size_are_less_alike_in_length_than_in_angle(found):
    """Task b has targets 30 times as large: its gradients are longer, and that alone."""
    pairs = np.asarray(found.between_tasks.whole.magnitude).mean(axis=0)
    assert max(pairs[0, 1], pairs[1, 2]) < 0.5 * pairs[0, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"memory": 0}, "memory must be at least 1"),
        ({"argnums": (2,)}, r"argnums=\(2,\) must name some of the 2 arguments"),
        ({"argnums": ()}, "needs the same leading axis on every leaf"),
    ],
)
def test_bad_arguments_are_one_sentence(network, options, message):
    with pytest.raises(ValueError, match=message):
        mtl.analysis.sample_conflicts(network_losses, *network, **{"argnums": (0, 1), **options})


def convolutional(params, images, targets):
    """Two tasks on a convolution, which a CPU does one example after the other."""
    dims = ("NHWC", "HWIO", "NHWC")
    z = jax.lax.conv_general_dilated(images, params["conv"]["kernel"], (1, 1), "VALID", dimension_numbers=dims)
    z = jnp.tanh(z).mean(axis=(1, 2))
    return {task: jnp.mean((z @ params[task] - targets[task]) ** 2) for task in ("a", "b")}


def test_gradients_of_convolutions_are_those_of_each_example_and_compiled_once():
    rng = np.random.default_rng(2)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    params = {"conv": {"kernel": draw(3, 3, 1, 4)}, "a": draw(4), "b": draw(4)}
    images, targets, traced = draw(5, 6, 6, 1), {"a": draw(5), "b": 10 * draw(5)}, []

    def losses_fn(params, images, targets):
        traced.append(images.shape)
        return convolutional(params, images, targets)

    each = mtl.analysis.sample_gradients(losses_fn, params, images, targets, argnums=(0, 1))
    grad = jax.jit(jax.grad(lambda params, task, *one: convolutional(params, *one)[task]), static_argnums=1)
    for i in (0, 4):
        one = images[i : i + 1], jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], targets)
        for k, task in enumerate("ab"):
            alone = grad(params, task, *one)
            for found, leaf in zip(jax.tree.leaves(each), jax.tree.leaves(alone), strict=True):
                np.testing.assert_allclose(found[i, k], leaf, rtol=1e-4, atol=1e-5)
    before = len(traced)
    found = mtl.analysis.sample_conflicts(losses_fn, params, images, targets, argnums=(0, 1))
    compiled = len(traced)
    again = mtl.analysis.sample_conflicts(losses_fn, params, images, targets, argnums=(0, 1))
    assert before < compiled == len(traced)
    assert set(traced) == {(1, 6, 6, 1)}
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert found.between_samples.whole.cosine.shape == (2, 5, 5)


def test_losses_that_are_no_dict_of_scalars_are_one_sentence(network):
    with pytest.raises(ValueError, match="losses_fn returned a"):
        mtl.analysis.sample_gradients(lambda params, x: jnp.sum(params["a"]) * x.sum(), *network[:2])
    apart = lambda params, x: {task: params[task].sum() * x.sum() for task in "ab"}  # noqa: E731
    with pytest.raises(ValueError, match="but the losses share none"):
        mtl.analysis.sample_conflicts(apart, {task: network[0][task] for task in "ab"}, network[1])
    with pytest.raises(ValueError, match="expected a floating point scalar"):
        mtl.analysis.sample_gradients(lambda params, x: {"a": params["a"] * x.sum()}, *network[:2])
