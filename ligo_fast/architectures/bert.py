"""BERT and RoBERTa: post-norm encoders with a masked-language head tied to the embedding."""

from . import Architecture, Size, register_architecture

SIZES = {
    "embed": Size("hidden_size"),
    "layer": Size("num_hidden_layers"),
    "head": Size("num_attention_heads"),
    "head_dim": Size(default=lambda c: c.hidden_size // c.num_attention_heads),
    "ffn": Size("intermediate_size"),
}
AXES = {"q": "head.q*head_dim.score", "k": "head.k*head_dim.score", "v": "head.v*head_dim"}
LAYER = {
    "attention.self.query.weight": "q, embed:in",
    "attention.self.query.bias": "q",
    "attention.self.key.weight": "k, embed:in",
    "attention.self.key.bias": "k",
    "attention.self.value.weight": "v, embed:in",
    "attention.self.value.bias": "v",
    "attention.output.dense.weight": "embed, v:in",
    "attention.output.dense.bias": "embed",
    "attention.output.LayerNorm.weight": "embed:gain",
    "attention.output.LayerNorm.bias": "embed:shift",
    "intermediate.dense.weight": "ffn, embed:in",
    "intermediate.dense.bias": "ffn",
    "output.dense.weight": "embed, ffn:in",
    "output.dense.bias": "embed",
    "output.LayerNorm.weight": "embed:gain",
    "output.LayerNorm.bias": "embed:shift",
}
BODY = {
    "embeddings.word_embeddings.weight": "vocab, embed",
    "embeddings.position_embeddings.weight": "position, embed",
    "embeddings.token_type_embeddings.weight": "segment, embed",
    "embeddings.LayerNorm.weight": "embed:gain",
    "embeddings.LayerNorm.bias": "embed:shift",
    "pooler.dense.weight": "embed, embed:in",
    "pooler.dense.bias": "embed",
    **{f"encoder.layer.*.{name}": dims for name, dims in LAYER.items()},
}
# norms as TensorFlow's checkpoints called them
OLD_NAMES = {
    row.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): row
    for row in [
        *BODY,
        "cls.predictions.transform.LayerNorm.weight",
        "cls.predictions.transform.LayerNorm.bias",
    ]
    if "LayerNorm" in row
}

register_architecture(
    Architecture(
        "bert",
        prefix="bert",
        norm="layer",
        eps="layer_norm_eps",
        post_norm=True,
        stored=OLD_NAMES,
        buffers=("embeddings.position_ids", "embeddings.token_type_ids"),
        sizes=SIZES,
        axes=AXES,
        parameters={
            **BODY,
            "cls.predictions.transform.dense.weight": "embed, embed:in",
            "cls.predictions.transform.dense.bias": "embed",
            "cls.predictions.transform.LayerNorm.weight": "embed:gain+",
            "cls.predictions.transform.LayerNorm.bias": "embed:shift+",
            "cls.predictions.decoder.weight": "vocab, embed:in",
            "cls.predictions.decoder.bias": "vocab",
            "cls.predictions.bias": "vocab",
            "cls.seq_relationship.weight": "label, embed:in",
            "cls.seq_relationship.bias": "label",
            "classifier.weight": "label, embed:in",
            "classifier.bias": "label",
            "qa_outputs.weight": "label, embed:in",
            "qa_outputs.bias": "label",
        },
    )
)

register_architecture(
    Architecture(
        "roberta",
        prefix="roberta",
        norm="layer",
        eps="layer_norm_eps",
        post_norm=True,
        stored=OLD_NAMES,
        buffers=("embeddings.position_ids", "embeddings.token_type_ids"),
        sizes=SIZES,
        axes=AXES,
        parameters={
            **BODY,
            "lm_head.dense.weight": "embed, embed:in",
            "lm_head.dense.bias": "embed",
            "lm_head.layer_norm.weight": "embed:gain+",
            "lm_head.layer_norm.bias": "embed:shift+",
            "lm_head.decoder.weight": "vocab, embed:in",
            "lm_head.decoder.bias": "vocab",
            "lm_head.bias": "vocab",
            "classifier.dense.weight": "embed, embed:in",
            "classifier.dense.bias": "embed",
            "classifier.out_proj.weight": "label, embed:in",
            "classifier.out_proj.bias": "label",
            "classifier.weight": "label, embed:in",
            "classifier.bias": "label",
            "qa_outputs.weight": "label, embed:in",
            "qa_outputs.bias": "label",
        },
    )
)
