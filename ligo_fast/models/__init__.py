"""Reading a pair of models: axes and families against a table, buffers, a target made from a size."""
