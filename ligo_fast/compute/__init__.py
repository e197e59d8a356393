"""Growing weights and pulling gradients back: which backend takes what, torch's, and the kernels' tables."""
