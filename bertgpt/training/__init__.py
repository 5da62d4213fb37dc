"""Training: the loop, one step, evaluation, optimisers and logs."""
