"""Speed side by side with transformers + torch: `python -m benchmarks train_step|inference|decode|startup|table`."""
