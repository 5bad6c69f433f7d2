"""MLP: shapes, fields, and learning with time labels of any scale."""

import dataclasses

import jax
import jax.numpy as jnp
import nets
import numpy as np
import optax
import pytest

from diffusers_fn.backbones import MLP

TINY = MLP(hidden_size=16, depth=2, embedding_dim=16, zero_init_output=False)
X = jnp.asarray(np.random.default_rng(0).standard_normal([3, 5]), jnp.float32)
T = jnp.array([3, 70, 700])

CHANGES = {
    "hidden_size": 24,
    "depth": 3,
    "embedding_dim": 20,
    "num_classes": 4,
    "dropout": 0.5,
    "learned_variance": True,
    "dtype": jnp.bfloat16,
    "param_dtype": jnp.bfloat16,
}


def test_parameter_count_from_first_principles():
    width, depth, emb, data = 512, 4, 128, 64
    layer = lambda a, b: a * b + b  # noqa: E731
    block = layer(emb, 2 * width) + 2 * layer(width, width)
    total = 2 * layer(emb, emb) + 11 * emb + layer(data, width) + depth * block + 2 * width + layer(width, data)
    assert nets.count(MLP(num_classes=10), jnp.zeros([1, 8, 8])) == total


def test_every_field_has_a_change():
    fields = {field.name for field in dataclasses.fields(MLP)} - {"parent", "name"}
    assert set(CHANGES) | {"zero_init_output"} == fields  # that one: test_laws.py


@pytest.mark.long
@pytest.mark.parametrize("field", sorted(CHANGES))
def test_every_field_changes_the_network(field):
    def observe(net):
        params = nets.random_params(net, X)
        return nets.structure(params), net.apply(
            {"params": params}, X, T, train=True, rngs={"dropout": nets.quick_key(0)}
        )

    before, changed = observe(TINY), observe(TINY.clone(**{field: CHANGES[field]}))
    assert before[0] != changed[0] or nets.relative_rms(changed[1], before[1]) > 1e-4


def test_vmap_over_parameters():
    sets = [nets.random_params(TINY, X, seed) for seed in (0, 1)]
    outs = jax.vmap(lambda params: TINY.apply({"params": params}, X, T))(jax.tree.map(lambda *p: jnp.stack(p), *sets))
    for params, out in zip(sets, outs):
        np.testing.assert_allclose(out, TINY.apply({"params": params}, X, T), atol=2e-5)


@pytest.mark.parametrize("shape", [(1,), (2,), (4, 4), (2, 3, 4, 5)])
def test_data_of_any_shape(shape):
    x = jnp.asarray(np.random.default_rng(1).standard_normal([3, *shape]), jnp.float32)
    params = nets.random_params(TINY, x)
    out = TINY.apply({"params": params}, x, T)
    assert out.shape == x.shape
    flat = TINY.apply({"params": params}, x.reshape(3, -1), T)
    np.testing.assert_array_equal(out.reshape(3, -1), flat)
    double = jax.eval_shape(lambda: TINY.clone(learned_variance=True).init_with_output(jax.random.key(0), x, T)[0])
    assert double.shape == (3, *shape[:-1], 2 * shape[-1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 0}, r"hidden_size and depth must be at least 1; got 16 and 0"),
        ({"embedding_dim": 18}, r"embedding_dim must be a multiple of 4; got 18"),
    ],
)
def test_misuse_is_explained(fields, message):
    with pytest.raises(ValueError, match=message):
        TINY.clone(**fields).init(jax.random.key(0), X, T)


@pytest.mark.long
def test_learns_a_gaussian_with_labels_of_any_scale():
    """Trained on x0 ~ N(mu, s^2), the loss comes within 2% of its optimum for labels of four scales.

    With x = x0 + sigma eps, E[eps | x] = sigma (x - mu) / (s^2 + sigma^2), and the least mean squared error is
    s^2 / (s^2 + sigma^2). The network receives x / sqrt(1 + sigma^2); without the level it stays 13% above.
    """
    net, mu, s = MLP(hidden_size=32, depth=2, embedding_dim=32), jnp.array([[0.6, -0.4]]), jnp.array([[0.3, 0.7]])
    tx = optax.adam(optax.cosine_decay_schedule(1e-2, 300))

    def excess(params, key, kind, batch):
        k_sigma, k_data, k_noise = jax.random.split(key, 3)
        u = jax.random.uniform(k_sigma, [batch])
        sigma = 0.02 * 1000.0**u  # 0.02 .. 20
        labels = jnp.stack([1000 * u, u, sigma, jnp.log(sigma)])[kind]
        sigma = sigma[:, None]
        eps = jax.random.normal(k_noise, [batch, 2])
        x = mu + s * jax.random.normal(k_data, [batch, 2]) + sigma * eps
        out = net.apply(params, x / jnp.sqrt(1 + sigma**2), labels)
        best = sigma * (x - mu) / (s**2 + sigma**2)
        return jnp.mean((out - eps) ** 2), jnp.mean((out - best) ** 2)

    @jax.jit
    def train(key, kind):
        k_init, k_steps, k_test = jax.random.split(key, 3)
        params = net.init(k_init, jnp.zeros([1, 2]), 0)

        def step(carry, key):
            params, state = carry
            grads = jax.grad(lambda p: excess(p, key, kind, 256)[0])(params)
            updates, state = tx.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(k_steps, 300))
        return excess(params, k_test, kind, 8192)

    for kind in range(4):
        loss, above = train(jax.random.key(0), kind)
        assert above < 0.02 * loss
