"""Many runs: ablations, sweeps, hyperparameter search, reports."""
