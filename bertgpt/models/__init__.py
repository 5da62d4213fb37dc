"""One readable file per model family; layers are shared, wiring is not."""
