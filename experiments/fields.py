"""The list of all fields of a config: value, type and the comment of `diffusers_fn/from_config/defaults.py`."""

from __future__ import annotations

import inspect
import io
import re
import textwrap
import tokenize
from typing import Any

from ml_collections import ConfigDict

from diffusers_fn.from_config import defaults
from diffusers_fn.from_config.module_fields import described
from diffusers_fn.from_config.network import NETWORKS, backbone_fields
from experiments import own

__all__ = ["comments", "list_fields"]

_ASSIGNED = re.compile(r"\s+(\w+)\.(\w+) = ")


def list_fields(config: ConfigDict) -> str:
    """Returns a table of text: a line per field, with its value in this config, its type and its meaning.

    >>> from diffusers_fn import default_config
    >>> print(list_fields(default_config()).splitlines()[0])  # doctest: +NORMALIZE_WHITESPACE
    --config.seed=0 int
    """
    meanings, networks = comments(), {**NETWORKS, **own.tables(config).backbones}
    types = {}
    if config.backbone.name in networks:
        entry = networks[config.backbone.name]
        texts = (
            _module_fields(entry.wrapper) | _module_fields(entry.module)
            if entry.wrapper
            else _module_fields(entry.module)
        )
        for field in backbone_fields(config.backbone.name, networks):
            types[f"backbone.{field.name}"] = "str" if field.name.endswith("dtype") else described(field.type)
            meanings.setdefault(f"backbone.{field.name}", texts.get(field.name, ""))
    meanings.setdefault("backbone.name", f'the network: {", ".join(networks)}, or "package.module:name" of your own')
    order, lines = {name: i for i, name in enumerate(comments())}, []  # that of defaults.py, the top first
    for name, value, kind in sorted(_flat(config, ""), key=lambda each: ("." in each[0], order.get(each[0], -1))):
        kind = types.get(name, kind)
        lines.append(f"--config.{name + '=' + _shown(value):<48} {kind:<14} {meanings.get(name, '')}".rstrip())
    return "\n".join(lines)


def comments() -> dict[str, str]:
    """Returns {"section.field": comment} of the fields in `defaults.py`.

    >>> comments()["training.batch_size"], comments()["seed"]
    ('', '')
    >>> comments()["sampler.s_churn"]
    'heun_churn'
    """
    source = inspect.getsource(defaults)
    lines, found = source.splitlines(), {}
    for line in lines:
        assigned = _ASSIGNED.match(line)
        if assigned:
            found[_name(*assigned.groups())] = ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        assigned = _ASSIGNED.match(token.line) if token.type == tokenize.COMMENT else None
        if assigned:
            found[_name(*assigned.groups())] = token.string.lstrip("# ")
    return found


def _name(section: str, field: str) -> str:
    return field if section in ("config", "model") else f"{section}.{field}"


def _flat(section: ConfigDict, prefix: str) -> list[tuple[str, Any, str]]:
    found = []
    for name, value in section.items():
        if isinstance(value, ConfigDict):
            found += _flat(value, f"{prefix}{name}.")
        else:
            kind = getattr(section.get_type(name), "__name__", "any")
            optional = value is None and kind != "NoneType"
            found.append((prefix + name, value, f"{kind} or None" if optional else kind))
    return found


def _shown(value: Any) -> str:
    text = str(value)
    return f"'{text}'" if " " in text or "(" in text else text


def _module_fields(module: type) -> dict[str, str]:
    """{field: text} of the part `Fields:` of a module's docstring."""
    body = inspect.cleandoc(module.__doc__ or "").partition("\nFields:\n")[2].partition("\n\n")[0]
    texts: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", textwrap.dedent(body)):
        names, _, text = entry.partition(":")
        for name in names.split(","):
            texts[name.strip()] = " ".join(text.split())
    return texts
