"""Self-supervised pretraining with DINO, step by step as the released code does it."""
