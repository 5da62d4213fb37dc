"""Loaded models: embeddings, generation, scoring, prompting."""
