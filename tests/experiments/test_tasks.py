"""Every kind of run, end to end on tiny settings: trained for three steps, resumed, sampled and scored."""

import importlib
import json

import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn.from_config.defaults import customise
from experiments import compare_variants, trained
from experiments.evaluate import evaluate
from experiments.sample import sample
from experiments.train import train

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("signal_handlers")]


def tiny(name, variant=None, **sections):
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    for field in ("hidden_size", "depth"):
        if config.backbone.name in ("mlp", "mlp_classifier"):
            config.backbone[field] = {"hidden_size": 16, "depth": 1}[field]
    steps = {"num_steps": 3, "warmup_steps": 0, "batch_size": 16, "sample_every": 2, "checkpoint_every": 1}
    sampler = {"num_inference_steps": min(4, config.sampler.num_inference_steps)}
    config = customise(config, training=steps, sampler=sampler, evaluation={"num_samples": 40, "batch_size": 20})
    return customise(config, **sections)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Work directories of a classifier and an autoencoder."""
    root = tmp_path_factory.mktemp("stages")
    for name in ("classifier", "autoencoder"):
        train(tiny(name), root / name)
        assert (root / name / "samples.png").stat().st_size > 300
    return root


RUNS = {
    "score_ve": ("score_sde", "ve", {}),
    "predictor_corrector": ("score_sde", "sub_vp", {"sampler": {"name": "predictor_corrector"}}),
    "euler_maruyama": ("score_sde", "vp", {"sampler": {"name": "euler_maruyama"}}),
    "edm": ("edm", "stochastic", {}),
    "flow": ("flow", "mode", {}),
    "coupled": ("flow", "ot", {}),
    "learned_variance": ("learned_variance", "vlb", {}),
    "mean_flow": ("few_step", "mean_flow", {}),
    "consistency": ("few_step", "consistency", {}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_variant_trains_samples_and_is_scored(name, tmp_path):
    file, variant, sections = RUNS[name]
    finish(tiny(file, variant, **sections), tmp_path / "run")


def finish(config, workdir):
    train(config, workdir)
    sample(config, workdir, num_samples=10, batch_size=10)
    evaluate(config, workdir)
    assert np.isfinite(np.load(workdir / "sampled" / "samples.npz")["samples"]).all()
    figures = json.loads((workdir / "evaluation.json").read_text())
    assert figures["network_evaluations"] >= 1
    assert "class_accuracy" in figures
    return figures


def test_an_unlabelled_model_is_guided_by_a_classifier(stages, tmp_path):
    config = tiny("ddpm_digits", "unconditional")
    train(config, tmp_path / "run")
    guided = customise(config, sampler={"classifier_workdir": str(stages / "classifier")})
    sample(guided, tmp_path / "run", num_samples=10, batch_size=10)
    assert len(np.load(tmp_path / "run" / "sampled" / "samples.npz")["labels"]) == 10
    evaluate(guided, tmp_path / "run")
    for field, value, message in (
        ("sampler.classifier_workdir", str(tmp_path / "none"), "holds no run: train configs/classifier.py"),
        ("sampler.classifier_workdir", str(stages / "autoencoder"), "a run of task 'autoencoder', not a classifier"),
    ):
        section, name = field.split(".")
        with pytest.raises(ValueError, match=message):
            trained.load_trained(
                customise(guided.copy_and_resolve_references(), **{section: {name: value}}), tmp_path / "run"
            )


def test_a_classifier_of_other_classes_or_noise_is_refused(stages):
    config = tiny("ddpm_digits", "unconditional", sampler={"classifier_workdir": str(stages / "classifier")})
    for changes, message in (
        ({"data": {"num_classes": 7}}, "has 10 classes, the data have 7"),
        ({"noise_schedule": {"beta_schedule": "cosine"}}, "was trained on other noise: noise_schedule.beta_schedule"),
        ({"data": {"shape": (4, 4, 1)}}, "is for data of shape"),
    ):
        other = customise(config.copy_and_resolve_references(), **changes)
        with pytest.raises(ValueError, match=message):
            trained.load_classifier(other, dfn.training.make_mesh())


def test_latents_are_decoded_and_need_their_own_work_directory_alone(stages, tmp_path):
    config = tiny("latent", latent={"autoencoder_workdir": str(stages / "autoencoder")})
    finish(config, tmp_path / "run")
    alone = customise(config, latent={"autoencoder_workdir": ""})
    _, _, step = trained.load_trained(alone, tmp_path / "run")
    assert step == 3
    with pytest.raises(ValueError, match=r"set config.latent.autoencoder_workdir to the --workdir"):
        train(alone, tmp_path / "other")
    with pytest.raises(ValueError, match="holds a run of task 'classifier'"):
        train(customise(config, latent={"autoencoder_workdir": str(stages / "classifier")}), tmp_path / "other")
    with pytest.raises(ValueError, match=r"only runs of the task 'diffusion' have samples"):
        trained.load_trained(tiny("autoencoder"), stages / "autoencoder")


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    config = tiny("edm")
    train(config, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    held = json.loads(path.read_text())
    del held["loss"]["mode_scale"], held["latent"]
    path.write_text(json.dumps(held))
    trained.load_trained(config, tmp_path / "run")


def test_the_table_of_variants_has_held_out_data_first(tmp_path):
    part = lambda a, b: {"samples": a, "heldout": b}  # noqa: E731
    evaluation = {
        "network_evaluations": 50,
        "class_accuracy": part(0.97, 0.99),
        "frechet_distance": part(0.5, 0.3),
        "precision": part(0.9, 0.91),
        "recall": part(0.8, 0.95),
    }
    bits = {"bits_per_dim": {"bound": {"mean": 3.3}, "flow, uniform": {"mean": 2.2}}}
    each = {"text": "EDM", "config": "edm.py", "seconds": 40.0, "evaluation": evaluation, "bits_per_dim": bits}
    lines = compare_variants.table({"edm": each}).splitlines()
    assert lines[2] == "| held-out digits |  |  |  | 99.0% | 0.30 | 0.91 | 0.95 |  |"
    assert lines[3] == "| EDM | `edm.py` | 40 s | 50 | 97.0% | 0.50 | 0.90 | 0.80 | bound 3.30 / flow 2.20 |"
    assert [v.name for v in compare_variants.choose(["guided"])] == ["classifier", "guided"]
    with pytest.raises(ValueError, match="--only must name some of"):
        compare_variants.choose(["nothing"])
