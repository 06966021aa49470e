"""DINO's self-distillation as the released code does it: two networks, many crops, one centre."""
