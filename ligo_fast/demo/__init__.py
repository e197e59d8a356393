"""A small GPT-2, grown by each method and trained on: ``python -m ligo_fast.demo``."""
