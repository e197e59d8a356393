"""The small model's optimizer state, grown with the model."""
