"""The programs of docs/data.md write what the kinds read."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from experiments import data

PAGE = Path(__file__).parent.parent.parent / "docs" / "data.md"
KINDS = {"arrays": "arrays", "array_record": "records", "tar": "tars", "hf": "hf"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_programs_of_the_page_write_what_the_kinds_read(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        file = Path("pictures") / ("cat", "dog")[i // 3] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    written = [block for block in blocks if re.search(rf'"{KINDS[kind]}[/"]|f"{KINDS[kind]}/', block)]
    if kind == "hf":
        pytest.importorskip("datasets")
    names: dict = {}
    exec(blocks[0], names)
    exec(written[-1], names)
    for limit in (0, 1):
        fields = {"name": kind, "path": KINDS[kind], "heldout_fraction": 0.0, "memory_limit_mb": limit}
        dataset = data.load(SimpleNamespace(**fields), "train")
        np.testing.assert_allclose(data.float_images(dataset), pixels / 127.5 - 1, atol=1e-6)
        assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert dataset.class_names == ("cat", "dog")
