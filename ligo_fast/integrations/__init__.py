"""Callbacks for trainers: `integrations.hf` (transformers) and `integrations.lightning`, imported by name."""
