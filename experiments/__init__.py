"""Experiments: frozen values that pair a model with a recipe. Run one with `bertgpt train demo/pretrain`."""
