"""Reading and writing: atomic files and directories, JSON, streams, locks, checksums. No other package does these."""
