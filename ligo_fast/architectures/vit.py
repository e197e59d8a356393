"""ViT and DeiT: pre-norm encoders over image patches, with class (and distillation) tokens."""

from . import Architecture, Size, register_architecture

LAYER = {
    "attention.q_proj.weight": "q, embed:in",
    "attention.q_proj.bias": "q",
    "attention.k_proj.weight": "k, embed:in",
    "attention.k_proj.bias": "k",
    "attention.v_proj.weight": "v, embed:in",
    "attention.v_proj.bias": "v",
    "attention.o_proj.weight": "embed, v:in",
    "attention.o_proj.bias": "embed",
    "layernorm_before.weight": "embed:gain",
    "layernorm_before.bias": "embed:shift",
    "layernorm_after.weight": "embed:gain",
    "layernorm_after.bias": "embed:shift",
    "mlp.fc1.weight": "ffn, embed:in",
    "mlp.fc1.bias": "ffn",
    "mlp.fc2.weight": "embed, ffn:in",
    "mlp.fc2.bias": "embed",
}

# files keep the names of before transformers 5
STORED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "layernorm_before",
    "layernorm_after": "layernorm_after",
}

# of a new DeiT; ViT draws these
ZEROS = ("embeddings.cls_token", "embeddings.distillation_token", "embeddings.position_embeddings")

for name in ("vit", "deit"):
    register_architecture(
        Architecture(
            name,
            prefix=name,
            norm="layer",
            eps="layer_norm_eps",
            sizes={
                "embed": Size("hidden_size"),
                "layer": Size("num_hidden_layers"),
                "head": Size("num_attention_heads"),
                "head_dim": Size(default=lambda c: c.hidden_size // c.num_attention_heads),
                "ffn": Size("intermediate_size"),
                "pooled": Size("pooler_output_size", default=lambda c: c.hidden_size),
            },
            scaled=dict.fromkeys(ZEROS if name == "deit" else (), lambda c: 0.0),
            stored={
                f"encoder.layer.*.{old}.{kind}": f"layers.*.{new}.{kind}"
                for old, new in STORED.items()
                for kind in ("weight", "bias")
            },
            axes={"q": "head.q*head_dim.score", "k": "head.k*head_dim.score", "v": "head.v*head_dim"},
            parameters={
                "embeddings.cls_token": "one, one, embed",
                "embeddings.distillation_token": "one, one, embed",
                "embeddings.mask_token": "one, one, embed",
                "embeddings.position_embeddings": "one, position, embed",
                "embeddings.patch_embeddings.projection.weight": "embed, channel, patch, patch",
                "embeddings.patch_embeddings.projection.bias": "embed",
                **{f"layers.*.{parameter}": dims for parameter, dims in LAYER.items()},
                "layernorm.weight": "embed:gain",
                "layernorm.bias": "embed:shift",
                "pooler.dense.weight": "pooled, embed:in",
                "pooler.dense.bias": "pooled",
                "classifier.weight": "label, embed:in",
                "classifier.bias": "label",
                "cls_classifier.weight": "label, embed:in",
                "cls_classifier.bias": "label",
                "distillation_classifier.weight": "label, embed:in",
                "distillation_classifier.bias": "label",
            },
        )
    )
