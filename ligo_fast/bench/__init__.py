"""`ligo-fast bench`, and what the project's own benchmarks (benchmarks/) are made of.

cases        the one list of what is grown: models, method, dtype
models       pairs of models as parameters alone
timing       a call's seconds, memory and launches, in turn with its peers
gate         float64 along random vectors: no number for a wrong result
measure      one case: gate, times, floor
command      what the command line asks for, its table and its trace
"""
