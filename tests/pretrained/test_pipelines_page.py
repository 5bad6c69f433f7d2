"""docs/pipelines.md: its code runs on a small pipeline, its tables are complete, its commands parse."""

import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from pipeline_runs import GOLDEN, complete

from diffusers_fn.pretrained.pipelines.kinds import KINDS
from diffusers_fn.pretrained.pipelines.sampling import Options

pytest.importorskip("tokenizers")
pytest.importorskip("sentencepiece")

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "pipelines.md").read_text()
SECTIONS = {text.partition("\n")[0]: text for text in PAGE.split("\n## ")[1:]}
CODE = {title: "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)) for title, text in SECTIONS.items()}
NEEDS = {"Inpainting": ["Image to image"], "Inversion and editing": ["Image to image"]}
LONG = [title for title, code in CODE.items() if code and title != "In short"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory with the files that the page names, small ones."""
    complete("sd1", tmp_path).rename(tmp_path / "stable-diffusion-v1-5")
    complete("sd3", tmp_path).rename(tmp_path / "stable-diffusion-3.5-medium")
    shutil.copytree(GOLDEN / "sd1_controlnet" / "controlnet", tmp_path / "controlnet-canny")
    shutil.copy(GOLDEN / "lora" / "lora_peft_alpha.safetensors", tmp_path / "style.safetensors")
    shutil.copy(GOLDEN / "textual_inversion" / "learned_embeds.safetensors", tmp_path / "cat-toy.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for name in ("cat.png", "edges.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(images, batch=None):
    assert images.shape[1:] == (64, 64, 3)
    assert batch in (None, len(images))
    assert np.isfinite(np.asarray(images, np.float32)).all()
    assert np.std(np.asarray(images, np.float32)) > 1e-3


@pytest.mark.long
def test_the_first_lines_run_and_draw_what_a_prompt_names(folder):
    names = {}
    exec(CODE["In short"].replace("pipeline.sample)", "lambda *given: pipeline.sample(*given, num_steps=4))"), names)
    check(names["images"], 2)
    assert names["uint8"].dtype == np.uint8
    assert np.abs(names["images"][0] - names["images"][1]).max() > 1e-3


@pytest.mark.long
@pytest.mark.parametrize("title", LONG)
def test_the_code_of_a_section_runs(title, folder):
    names = {}
    shortened = re.sub(r"^images = .*\n|^uint8 = .*\n", "", CODE["In short"], flags=re.MULTILINE)
    exec(shortened, names)
    for before in NEEDS.get(title, []):
        exec(re.sub(r"^images = .*\n", "", CODE[before], flags=re.MULTILINE), names)
    exec(CODE[title], names)
    check(names["images"])
    if title == "Options of sample":
        assert names["draw"]._cache_size() == 1
    if title == "LoRA":
        run = lambda scale: names["draw_scaled"](  # noqa: E731
            names["params"], names["adapter"], scale, jax.random.key(0), names["tokens"]
        )
        assert np.abs(run(0.0) - names["images"]).max() > 1e-4
        assert names["draw_scaled"]._cache_size() == 1
        assert (folder / "mine.safetensors").is_file()


def _first_cells(section):
    return " ".join(re.findall(r"^\| (.*?) \|", section, re.MULTILINE))


def test_the_tables_name_every_class_option_and_flag():
    classes = {name for kind in KINDS.values() for name in kind.class_names}
    assert set(re.findall(r"`(\w+)`", _first_cells(SECTIONS["In short"]))) == classes
    options = set(re.findall(r"`(\w+)`", _first_cells(SECTIONS["Options of sample"])))
    assert options == {*Options._fields, "output"}
    source = (ROOT / "experiments" / "text_to_image.py").read_text().split('if __name__ == "__main__":')[1]
    flags = set(re.findall(r'(?:define_path|DEFINE_\w+)\("(\w+)"', source))
    assert set(re.findall(r"`--(\w+)`", _first_cells(SECTIONS["The command"]))) == flags


def test_flags_of_the_commands_exist():
    commands = " ".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
    found = re.findall(r"python -m experiments\.(\w+)(.*)", commands)
    assert {name for name, _ in found} == {"text_to_image", "emoji", "train", "sample", "caption_score"}
    for name, arguments in found:
        files = [ROOT / "experiments" / f"{name}.py", ROOT / "experiments" / "command_line.py"]
        source = "".join(path.read_text() for path in files)
        for flag in re.findall(r"--(\w+)=", arguments):
            assert flag == "config" or f'"{flag}"' in source, (name, flag)


@pytest.mark.parametrize("page", ["docs/pipelines.md", "README.md"])
def test_links_lead_to_files_and_headings(page):
    path = ROOT / page
    for target, _, heading in re.findall(r"\]\((?!http)([^)#]+)(#([\w-]+))?\)", path.read_text()):
        file = path.parent / target
        assert file.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target
