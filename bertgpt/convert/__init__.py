"""Models of this package ↔ Hugging Face directories: one table for each family, the same table both ways."""
