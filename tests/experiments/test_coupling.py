"""Minibatch optimal transport: the cheapest pairing within classes, the same for a resumed run."""

import itertools

import numpy as np

from experiments.data.coupling import coupled, optimal_pairing


def cost(image, noise):
    return float(np.sum((image - noise) ** 2))


def test_no_permutation_is_cheaper():
    rng = np.random.default_rng(0)
    image, noise = rng.standard_normal((2, 6, 3))
    found = cost(image, optimal_pairing(image, noise))
    every = [cost(image, noise[list(order)]) for order in itertools.permutations(range(6))]
    np.testing.assert_allclose(found, min(every), rtol=1e-12)


def test_noise_stays_within_its_class():
    rng = np.random.default_rng(1)
    image, noise = rng.standard_normal((2, 40, 2))
    label = np.arange(40) % 4
    paired = optimal_pairing(image, noise, label)
    for y in range(4):
        np.testing.assert_array_equal(np.sort(paired[label == y], axis=0), np.sort(noise[label == y], axis=0))
    assert cost(image, optimal_pairing(image, noise)) < cost(image, paired) < cost(image, noise)


def test_a_resumed_run_sees_the_same_noise():
    batches = [{"image": np.full((3, 2), float(k), np.float32)} for k in range(4)]
    whole = [batch["noise"] for batch in coupled(iter(batches), seed=5)]
    resumed = [batch["noise"] for batch in coupled(iter(batches[2:]), seed=5, start_step=2)]
    np.testing.assert_array_equal(whole[2], resumed[0])
    assert whole[2].dtype == np.float32
    assert not np.array_equal(whole[0], whole[1])
