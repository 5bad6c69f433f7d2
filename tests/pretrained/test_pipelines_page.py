"""Every block of Python in docs/pipelines.md, one after the other, on a small pipeline."""

import re
import shutil
from pathlib import Path

import pytest
from pipeline_runs import GOLDEN, complete

pytest.importorskip("tokenizers")
PAGE = (Path(__file__).parents[2] / "docs" / "pipelines.md").read_text()


@pytest.mark.long
def test_the_page_runs(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) >= 8
    shutil.copy(GOLDEN / "textual_inversion" / "learned_embeds.safetensors", tmp_path)
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks).replace('"FOLDER"', repr(str(complete("sd1", tmp_path))))
    code = code.replace("jax.jit(pipeline.sample)", "jax.jit(lambda *given: pipeline.sample(*given, num_steps=2))")
    names = {}
    exec(compile(code, "docs/pipelines.md", "exec"), names)
    assert names["images"].shape == (2, 32, 32, 3)
    assert names["edited"].shape == (1, 32, 32, 3)
    assert (tmp_path / "adapter.safetensors").exists()


def test_the_page_names_every_flag_and_class():
    source = (Path(__file__).parents[2] / "experiments" / "text_to_image.py").read_text()
    defined = set(re.findall(r'(?:define_path|DEFINE_\w+)\("(\w+)"', source)) - {"model", "base", "output", "prompt"}
    assert {name for name in defined if f"--{name}" not in PAGE} == set()
