"""Downstream tasks: read, format, score. No training code."""
