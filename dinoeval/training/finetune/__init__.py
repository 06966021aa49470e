"""Supervised fine-tuning of the whole network with the DeiT recipe."""
