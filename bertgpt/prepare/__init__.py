"""Corpus preparation: filter, deduplicate, tokenize, write token stores."""
