"""A trained model's samples: all networks' parameters are arguments of the compiled program, not constants."""

import json

import jax
import jax.export
import numpy as np
import pytest

import diffusers_fn as dfn
from configs import autoencoder, classifier, ddpm_digits, latent
from diffusers_fn.from_config.defaults import customise
from experiments import latent as latents
from experiments import runs, trained
from experiments.export import PLATFORMS, sampler_of

SMALL = {"hidden_size": 64, "depth": 1}


def constants(function, *args):
    """Numbers in the largest constant of a program, those inside its loops and calls included."""

    def sizes(jaxpr):
        for constant in getattr(jaxpr, "consts", ()):
            yield np.size(constant)
        for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
            yield from (np.size(v.val) for v in equation.invars if hasattr(v, "val"))
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from sizes(inner)

    return max(sizes(jax.make_jaxpr(function)(*args)), default=0)


def of_latents():
    config = customise(latent.get_config(), backbone=SMALL, sampler={"num_inference_steps": 3})
    first = dfn.build_autoencoder(autoencoder.get_config())
    model = dfn.build(latents.in_latents(config, first))
    extras = {"autoencoder": first.init(jax.random.key(1)), "scale": np.float32(0.5), "shift": np.float32(0.1)}
    networks = trained.Networks(model.init(jax.random.key(0)), first_stage=extras)
    return config, model, networks, {"autoencoder": first}


def guided():
    config = customise(
        ddpm_digits.get_config("unconditional"),
        backbone=SMALL,
        sampler={"num_inference_steps": 3, "classifier_scale": 2.0, "clip_denoised": False},
    )
    net = dfn.build_classifier(classifier.get_config())
    model = dfn.build(config)
    networks = trained.Networks(model.init(jax.random.key(0)), classifier=net.init(jax.random.key(1)))
    return config, model, networks, {"classifier": net}


@pytest.mark.long
@pytest.mark.parametrize("make", [of_latents, guided])
def test_no_network_is_compiled_in(make):
    config, model, networks, others = make()
    whole = trained.of_networks(config, model, networks, **others)
    labels = np.arange(4, dtype=np.int32)

    def draw(networks, key):
        return whole.sample(networks, key, 4, cond=labels).x0

    smallest = min(max(leaf.size for leaf in jax.tree.leaves(tree)) for tree in networks if tree is not None)
    key = jax.random.key(2)
    assert constants(draw, networks, key) < 2_000 < smallest
    assert constants(lambda key: draw(networks, key), key) >= smallest  # the check sees what it is to see
    # And the other network's parameters do what they are there for.
    changed = networks._replace(
        first_stage=networks.first_stage and {**networks.first_stage, "shift": np.float32(0.7)},
        classifier=networks.classifier
        and jax.tree.map(lambda p: p + jax.random.normal(key, p.shape), networks.classifier),
    )
    run = jax.jit(draw)
    assert float(np.abs(run(networks, key) - run(changed, key)).max()) > 1e-4


@pytest.mark.long
def test_samples_of_latents_are_decoded_in_chunks_of_the_configs():
    config, model, networks, others = of_latents()
    draw = lambda config: np.asarray(  # noqa: E731
        trained.of_networks(config, model, networks, **others)
        .sample(networks, jax.random.key(2), 5, cond=np.arange(5))
        .x0
    )
    whole = draw(config)
    for size in (2, 5, 100):
        chunked = customise(config.copy_and_resolve_references(), latent={"decode_batch_size": size})
        np.testing.assert_allclose(draw(chunked), whole, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"decode_batch_size must be 0 .all at once. or more; got -1"):
        draw(customise(config.copy_and_resolve_references(), latent={"decode_batch_size": -1}))


def test_another_generator_is_another_run(tmp_path):
    config = ddpm_digits.get_config()
    runs.open_workdir(tmp_path / "run", config, create=True)
    other = customise(ddpm_digits.get_config(), prng_impl="rbg")
    with pytest.raises(ValueError, match="prng_impl: threefry2x32 there, rbg here"):
        runs.open_workdir(tmp_path / "run", other, create=True)
    # A run from before there was a choice had JAX's default.
    path = tmp_path / "run" / "config.json"
    held = json.loads(path.read_text())
    del held["prng_impl"]
    path.write_text(json.dumps(held))
    runs.open_workdir(tmp_path / "run", config, create=True)
    with pytest.raises(ValueError, match="prng_impl: threefry2x32 there, rbg here"):
        runs.open_workdir(tmp_path / "run", other, create=True)
    assert str(jax.random.key_impl(runs.random_key(other, 0))) == "rbg"
    with pytest.raises(ValueError, match="prng_impl must be one of threefry2x32, rbg, unsafe_rbg; got 'mt19937'"):
        runs.random_key(customise(ddpm_digits.get_config(), prng_impl="mt19937"), 0)
    for seed in (-1, 2**32):  # whose keys would be those of 2**32 - 1 and 0
        with pytest.raises(ValueError, match=r"a seed must lie in 0 \.\.\. 4294967295; got"):
            runs.random_key(config, seed)


@pytest.mark.long
@pytest.mark.parametrize("make", [of_latents, guided])
def test_latents_are_decoded_and_classifiers_guide_inside(make, tmp_path):
    config, model, networks, others = make()
    if make is guided:  # the labels are those of the classifier's run
        (tmp_path / "config.json").write_text(json.dumps(classifier.get_config().to_dict()))
        config.sampler.classifier_workdir = str(tmp_path)
    networks = networks._replace(classifier_scale=np.float32(2.0) if make is guided else None)
    whole = trained.of_networks(config, model, networks, **others)
    sampler = sampler_of(config, whole, networks, max_steps=4)
    assert ("classifier_scale" in sampler.inputs) == (make is guided)
    like = {name: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype) for name, leaf in sampler.params.items()}
    program = jax.export.export(jax.jit(sampler.program), platforms=PLATFORMS)(like, sampler.inputs)
    keys = jax.random.split(jax.random.key(1), 3)
    inputs = {"keys": jax.random.key_data(keys), "num_steps": np.int32(3)}
    cond = None
    if "labels" in sampler.inputs:
        cond = inputs["labels"] = np.arange(3, dtype=np.int32)
    if make is guided:
        inputs["classifier_scale"] = np.float32(2.0)
    wanted = jax.jit(lambda networks, keys: whole.sample(networks, keys, 3, cond=cond).x0)(networks, keys)
    assert wanted.shape == (3, *config.data.shape)
    np.testing.assert_allclose(program.call(sampler.params, inputs), wanted, rtol=1e-5, atol=1e-5)
