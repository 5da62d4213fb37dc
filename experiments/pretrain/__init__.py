"""Pretraining recipes: the published ones, and mini versions that run on a CPU."""
