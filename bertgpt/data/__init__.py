"""From files of text to batches of token ids: numpy only, no jax."""
