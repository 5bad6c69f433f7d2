"""Layouts of the blocks of two streams of tokens, shared by `sd3.py` and `flux.py`."""

from __future__ import annotations

from diffusers_fn.pretrained.entries import Entry, linear, norm

__all__ = ["embedder", "feed_forward", "heads", "joint_block"]


def heads(path: str, name: str, *, qk_norm: str | None, added: bool = False) -> list[Entry]:
    """Returns the entries of `joint_attention.Heads` from an attention's projections; added: those of the text.

    >>> [entry.names[0] for entry in heads("a", "attn", qk_norm="rms", added=True)][::2]
    ['attn.add_q_proj.weight', 'attn.add_k_proj.weight', 'attn.add_v_proj.weight', 'attn.norm_added_q.weight']
    """
    found: list[Entry] = []
    for part in ("query", "key", "value"):
        found += linear(f"{path}/{part}", f"{name}.add_{part[0]}_proj" if added else f"{name}.to_{part[0]}")
    for part in ("query", "key") if qk_norm else ():
        theirs = f"{name}.norm_added_{part[0]}" if added else f"{name}.norm_{part[0]}"
        entries = norm(f"{path}/{part}_norm", theirs)
        found += entries if qk_norm == "layer" else entries[:1]
    return found


def feed_forward(path: str, name: str) -> list[Entry]:
    """Returns the entries of `transformer.FeedForward`.

    >>> feed_forward("mlp", "ff")[0].names
    ('ff.net.0.proj.weight',)
    """
    return [*linear(f"{path}/dense_0", f"{name}.net.0.proj"), *linear(f"{path}/dense_1", f"{name}.net.2")]


def joint_block(
    path: str, name: str, *, qk_norm: str | None, context_out: bool = True, dual_attention: bool = False
) -> list[Entry]:
    """Returns the entries of `joint_attention.JointBlock` from a JointTransformerBlock or FluxTransformerBlock.

    >>> len(joint_block("block_0", "transformer_blocks.0", qk_norm="rms"))
    32
    """
    found = [*linear(f"{path}/modulation", f"{name}.norm1.linear")]
    found += linear(f"{path}/context_modulation", f"{name}.norm1_context.linear")
    found += heads(f"{path}/attention/heads", f"{name}.attn", qk_norm=qk_norm)
    found += heads(f"{path}/attention/context_heads", f"{name}.attn", qk_norm=qk_norm, added=True)
    found += linear(f"{path}/attention/out", f"{name}.attn.to_out.0")
    found += feed_forward(f"{path}/mlp", f"{name}.ff")
    if context_out:
        found += linear(f"{path}/attention/context_out", f"{name}.attn.to_add_out")
        found += feed_forward(f"{path}/context_mlp", f"{name}.ff_context")
    if dual_attention:
        found += heads(f"{path}/second_heads", f"{name}.attn2", qk_norm=qk_norm)
        found += linear(f"{path}/second_out", f"{name}.attn2.to_out.0")
    return found


def embedder(path: str, name: str) -> list[Entry]:
    """Returns the entries of `EmbeddingMLP` from two linear layers, linear_1 and linear_2.

    >>> embedder("time_embedding", "timestep_embedder")[2].path
    'time_embedding/dense_1/kernel'
    """
    return [*linear(f"{path}/dense_0", f"{name}.linear_1"), *linear(f"{path}/dense_1", f"{name}.linear_2")]
