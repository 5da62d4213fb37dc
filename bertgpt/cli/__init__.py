"""The command line: one file a command, whose options are a dataclass. `main` dispatches, `options` is the grammar."""
