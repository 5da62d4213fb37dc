"""bertgpt: language-model pretraining and transfer in JAX."""
