"""The compiled parts (csrc/) seen from Python: loading them, what goes in, and torch's way without them."""
