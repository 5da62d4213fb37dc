"""Ways of transfer: freezing, LoRA."""
