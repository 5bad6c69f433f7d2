"""The files of a tokenizer's folder: its settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Settings", "read_json", "read_settings"]


class Settings(NamedTuple):
    """The settings of a tokenizer_config.json; each special token is a string or None.

    Attributes:
      start, end, pad, unk: the special tokens: of start, end, padding, and for unknown text.
      max_length: largest number of tokens of a sequence.
    """

    start: str | None
    end: str | None
    pad: str | None
    unk: str | None
    max_length: int


def read_settings(folder: Path, max_length: int) -> Settings:
    """Returns the settings of a folder; those of special_tokens_map.json where tokenizer_config.json has none.

    Args:
      folder: of the tokenizer.
      max_length: where the file has none, or an unlimited one.
    """
    held: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).exists():
            held |= {field: value for field, value in read_json(folder / name).items() if value is not None}
    given = held.get("model_max_length")
    length = given if isinstance(given, int) and 0 < given < 10**6 else max_length
    tokens = {field: _content(held.get(f"{field}_token")) for field in ("bos", "eos", "pad", "unk")}
    return Settings(tokens["bos"], tokens["eos"], tokens["pad"], tokens["unk"], length)


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; ValueError that names the file if it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object; it holds a {type(found).__name__}")
    return found


def _content(token: Any) -> str | None:
    """A token as text; older files hold an object with its options."""
    return token.get("content") if isinstance(token, dict) else token
