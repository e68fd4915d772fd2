"""compute_dtype="bfloat16": the network's products are short, all that is done with its gradients is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxprs_in_params
from marks import mostly_slow

import mtljax as mtl
from mtljax.data.batches import Batch
from mtljax.training import DataConfig, MethodConfig, ModelConfig, parallel
from mtljax.training.loop import load_data
from mtljax.training.program import build_program, build_transformation, data_key, evaluate, init_state
from mtljax.training.step import make_step, task_losses

SHORT = {
    "mlp": ModelConfig("mlp", {"features": (32,)}, compute_dtype="bfloat16"),
    "lenet": ModelConfig("lenet", {"kernels": (3, 3), "padding": "SAME", "features": 16}, compute_dtype="bfloat16"),
    "resnet": ModelConfig("resnet18", {"width": 2, "blocks": (1,), "features": 8, "small_stem": True}, "bfloat16"),
}


def set_up(config):
    """The program, the state before the first step and a batch."""
    data = load_data(config)
    program = build_program(config, data)
    examples = data.splits["train"]
    targets = {name: jnp.asarray(target[: config.batch_size]) for name, target in examples.targets.items()}
    batch = Batch(jnp.asarray(examples.inputs[: config.batch_size]), targets, jnp.ones(config.batch_size))
    return data, program, init_state(config, data, program), batch


def floats(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)}


@pytest.mark.parametrize("model", mostly_slow(SHORT, quick=("lenet",)))
def test_parameters_gradients_gramian_and_states_are_float32(tiny, model):
    config = tiny(model=SHORT[model], method=MethodConfig("moco"))
    data, program, state, batch = set_up(config)
    step = make_step(program.model, program.tasks, build_transformation(config, data))
    after, metrics = jax.eval_shape(step, state, batch)
    assert floats(after) == floats(metrics) == {"float32"}

    def read(params):
        arguments = (state.model_state, batch, state.key[None])
        losses, grads = mtl.task_gradients(task_losses(program.model, program.tasks), params, *arguments, has_aux=True)
        return losses[0], grads.jacobian(), grads.scaled_gramian(), grads.combine(jnp.ones(2))

    assert floats(jax.eval_shape(read, state.params)) == {"float32"}


def products(jaxpr):
    """Every matrix product and convolution of a program: dtypes of its operands, and its precision."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield {str(operand.aval.dtype) for operand in equation.invars}, equation.params["precision"]
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


@pytest.mark.parametrize("model", SHORT)
def test_the_networks_products_are_bfloat16_and_all_others_float32_at_the_highest_precision(tiny, model):
    config = tiny(model=SHORT[model], method=MethodConfig("cagrad"))
    data, program, state, batch = set_up(config)
    step = make_step(program.model, program.tasks, build_transformation(config, data))
    found = list(products(jax.make_jaxpr(step)(state, batch).jaxpr))
    network = [dtypes for dtypes, precision in found if precision != (lax.Precision.HIGHEST,) * 2]
    methods = [dtypes for dtypes, precision in found if precision == (lax.Precision.HIGHEST,) * 2]
    # Forward, and two products for each backward pass, of one hidden layer and two heads at least.
    assert len(network) >= 6
    assert all(dtypes == {"bfloat16"} for dtypes in network)
    assert methods
    assert all(dtypes == {"float32"} for dtypes in methods)


@pytest.mark.slow
def test_training_reaches_the_accuracy_of_float32(tiny):
    scores = {}
    for dtype in ("float32", "bfloat16"):
        model = ModelConfig("mlp", {"features": (128,)}, compute_dtype=dtype)
        sizes = {"num_train": 4096, "num_validation": 200, "num_test": 1000}
        config = tiny(data=DataConfig("digits", sizes), model=model, method=MethodConfig("cagrad"), epochs=10)
        data, program, state, _ = set_up(config)
        state, split = parallel.place((state, data.splits["train"]), program.devices)
        for epoch in range(config.epochs):
            order = program.shuffle(data_key(config), epoch)
            for _ in range(program.steps_per_epoch):
                state, _ = program.advance(state, split, order, None)
        results = evaluate(program.evaluation, state.params, state.model_state, data.splits["test"])
        scores[dtype] = np.mean([values["accuracy"] for values in results.values()])
    assert scores["float32"] > 0.5  # by chance 0.1
    assert abs(scores["bfloat16"] - scores["float32"]) < 0.03
