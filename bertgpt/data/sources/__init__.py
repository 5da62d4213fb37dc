"""Where text and records come from: files, remote paths, TFDS, CoNLL."""
