"""The same network and steps in JAX: ``jit(vmap(train_step))``. Needs the extra ``bench``."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from contenders import Contender, rate
from jax import lax

from fmnist.functional import batching, cnn
from fmnist.functional.types import ModelConfig, Split


def _block(params, name, x):  # noqa: ANN001
    conv, norm = params[f"conv{name}"], params[f"norm{name}"]
    x = lax.conv_general_dilated(
        x, conv["weight"], (1, 1), "VALID", dimension_numbers=("NCHW", "OIHW", "NCHW")
    )
    x = x + conv["bias"][:, None, None]
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
    x = (x - mean[:, None, None]) * lax.rsqrt(var + 1e-5)[:, None, None]
    x = jax.nn.relu(x * norm["weight"][:, None, None] + norm["bias"][:, None, None])
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    return x, (mean, var)


def _loss(params, images, labels):  # noqa: ANN001
    x, first = _block(params, 1, images)
    x, second = _block(params, 2, x)
    x = x.reshape(x.shape[0], -1)
    for i in (1, 2, 3):
        layer = params[f"linear{i}"]
        x = x @ layer["weight"].T + layer["bias"]
        x = jax.nn.relu(x) if i < 3 else x
    losses = -jnp.take_along_axis(jax.nn.log_softmax(x), labels[:, None], 1)
    return losses.mean(), (first, second)


def _step(carry, images, labels, learning_rate):  # noqa: ANN001
    params, statistics, mean, square, count = carry
    (loss, new), grads = jax.value_and_grad(_loss, has_aux=True)(params, images, labels)
    statistics = jax.tree.map(lambda old, now: 0.9 * old + 0.1 * now, statistics, new)
    count = count + 1
    mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, grads)
    square = jax.tree.map(lambda s, g: 0.999 * s + 0.001 * g * g, square, grads)
    size, correction = learning_rate / (1 - 0.9**count), 1 - 0.999**count
    params = jax.tree.map(
        lambda p, m, s: p - size * m / (jnp.sqrt(s / correction) + 1e-8), params, mean, square
    )
    return (params, statistics, mean, square, count), loss


class Jax(Contender):
    """``jit(vmap(train_step))``, called once a step. It also gathers and scales the images."""

    def __init__(
        self, split: Split, batch_size: int, lanes: int, model: ModelConfig = ModelConfig()
    ) -> None:
        super().__init__(split, batch_size, lanes, model)
        self._images, self._labels = (
            jnp.asarray(split.images.numpy()),
            jnp.asarray(split.labels.numpy()),
        )
        params, _ = cnn.init(0)
        params = {
            layer: {leaf: jnp.stack([jnp.asarray(t.numpy())] * lanes) for leaf, t in tree.items()}
            for layer, tree in params.items()
        }
        zeros = jax.tree.map(jnp.zeros_like, params)
        statistics = tuple((jnp.zeros((lanes, c)), jnp.ones((lanes, c))) for c in (12, 24))
        self._carry = (params, statistics, zeros, zeros, jnp.zeros(lanes))
        self._rates = jnp.asarray([rate(i) for i in range(lanes)])

        @jax.jit
        def step(carry, indices):  # noqa: ANN001
            images = self._images[indices].astype(jnp.float32) / 255
            batch = (images, self._labels[indices])
            return jax.vmap(_step, in_axes=(0, None, None, 0))(carry, *batch, self._rates)

        self._step = step

    def epoch(self) -> list[float]:
        self.done += 1
        order = batching.permutation(0, self.done, len(self.split.labels))
        total = jnp.zeros(self.lanes)
        for indices in order.split(self.batch_size):
            self._carry, loss = self._step(self._carry, jnp.asarray(indices.numpy()))
            total = total + loss * len(indices)
        return (total / len(self.split.labels)).tolist()
