"""GPT-2: pre-norm decoder, fused q|k|v, Conv1D weights stored (in, out), tied head."""

from typing import Any

from . import Architecture, Size, register_architecture


def divisor(config: Any, layer: int) -> float:
    """What a layer divides its attention scores by."""
    root = (config.n_embd // config.n_head) ** 0.5 if getattr(config, "scale_attn_weights", True) else 1.0
    return root * (layer + 1 if getattr(config, "scale_attn_by_inverse_layer_idx", False) else 1)


register_architecture(
    Architecture(
        "gpt2",
        prefix="transformer",
        norm="layer",
        eps="layer_norm_epsilon",
        sizes={
            "embed": Size("n_embd"),
            "layer": Size("n_layer"),
            "head": Size("n_head"),
            "head_dim": Size(default=lambda c: c.n_embd // c.n_head),
            "ffn": Size("n_inner", default=lambda c: 4 * c.n_embd),
        },
        scaled=dict.fromkeys(
            ("h.*.attn.c_proj.weight", "h.*.mlp.c_proj.weight"), lambda c: (2 * c.n_layer) ** -0.5
        ),
        divisor=divisor,
        buffers=("h.*.attn.bias", "h.*.attn.masked_bias"),
        axes={"q": "head.q*head_dim.score", "k": "head.k*head_dim.score", "v": "head.v*head_dim"},
        parameters={
            "wte.weight": "vocab, embed",
            "wpe.weight": "position, embed",
            "h.*.ln_1.weight": "embed:gain",
            "h.*.ln_1.bias": "embed:shift",
            "h.*.attn.c_attn.weight": "embed:in, q|k|v",
            "h.*.attn.c_attn.bias": "q|k|v",
            "h.*.attn.c_proj.weight": "v:in, embed",
            "h.*.attn.c_proj.bias": "embed",
            "h.*.ln_2.weight": "embed:gain",
            "h.*.ln_2.bias": "embed:shift",
            "h.*.mlp.c_fc.weight": "embed:in, ffn",
            "h.*.mlp.c_fc.bias": "ffn",
            "h.*.mlp.c_proj.weight": "ffn:in, embed",
            "h.*.mlp.c_proj.bias": "embed",
            "ln_f.weight": "embed:gain+",
            "ln_f.bias": "embed:shift+",
            "lm_head.weight": "vocab, embed:in",
            "score.weight": "label, embed:in",
            "classifier.weight": "label, embed:in",
            "classifier.bias": "label",
            "qa_outputs.weight": "label, embed:in",
            "qa_outputs.bias": "label",
        },
    )
)
