"""Downstream tasks and ways of transfer."""
