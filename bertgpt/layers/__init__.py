"""Building blocks shared by every model: pure functions first, a flax module where there are parameters."""
