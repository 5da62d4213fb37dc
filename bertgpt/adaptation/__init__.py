"""Transfer: initialising from pretrained weights, freezing parameters, LoRA."""
