"""Llama, Mistral, Qwen2 and Qwen3: pre-norm decoders with grouped queries, RoPE, SwiGLU and RMSNorm.

A query head is (kv_head, group): each stays with its key/value head. The attention output, consumed by
o_proj, carries the values of each kv_head once per query of its group.
"""

from . import Architecture, Size, register_architecture

SIZES = {
    "embed": Size("hidden_size"),
    "layer": Size("num_hidden_layers"),
    "head": Size("num_attention_heads"),
    "kv_head": Size("num_key_value_heads", default=lambda c: c.num_attention_heads),
    "group": Size(
        default=lambda c: c.num_attention_heads // (c.num_key_value_heads or c.num_attention_heads)
    ),
    "head_dim": Size("head_dim", default=lambda c: c.hidden_size // c.num_attention_heads),
    "ffn": Size("intermediate_size"),
}
AXES = {
    "q": "kv_head.q*group*head_dim",
    "k": "kv_head.k*head_dim",
    "v": "kv_head.v*head_dim",
    "context": "kv_head.v*group*head_dim",
}
# Qwen3 normalises q and k per head
NORMED_AXES = {**AXES, "q": "kv_head.q*group*head_dim.normed", "k": "kv_head.k*head_dim.normed"}
LAYER = {
    "input_layernorm.weight": "embed:gain",
    "post_attention_layernorm.weight": "embed:gain",
    "self_attn.q_proj.weight": "q, embed:in",
    "self_attn.k_proj.weight": "k, embed:in",
    "self_attn.v_proj.weight": "v, embed:in",
    "self_attn.o_proj.weight": "embed, context:in",
    "self_attn.q_proj.bias": "q",
    "self_attn.k_proj.bias": "k",
    "self_attn.v_proj.bias": "v",
    "self_attn.o_proj.bias": "embed",
    "self_attn.q_norm.weight": "head_dim:gain",
    "self_attn.k_norm.weight": "head_dim:gain",
    "mlp.gate_proj.weight": "ffn, embed:in",
    "mlp.up_proj.weight": "ffn, embed:in",
    "mlp.down_proj.weight": "embed, ffn:in",
    "mlp.gate_proj.bias": "ffn",
    "mlp.up_proj.bias": "ffn",
    "mlp.down_proj.bias": "embed",
}

for name in ("llama", "mistral", "qwen2", "qwen3"):
    register_architecture(
        Architecture(
            name,
            prefix="model",
            norm="rms",
            eps="rms_norm_eps",
            rotary=True,
            buffers=("layers.*.self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq"),
            ties=False,
            sizes=SIZES,
            axes=NORMED_AXES if name == "qwen3" else AXES,
            parameters={
                "embed_tokens.weight": "vocab, embed",
                **{f"layers.*.{parameter}": dims for parameter, dims in LAYER.items()},
                "norm.weight": "embed:gain+",
                "lm_head.weight": "vocab, embed:in",
                "score.weight": "label, embed:in",
                "score.bias": "label",
            },
        )
    )
