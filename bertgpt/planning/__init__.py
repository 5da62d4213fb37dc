"""What an experiment will cost, found without running it."""
