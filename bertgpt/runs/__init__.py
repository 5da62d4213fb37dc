"""The run directory: what it holds, its checkpoints, and the arrays in them."""
