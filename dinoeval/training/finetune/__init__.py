"""Supervised fine-tuning of the whole network with DeiT's recipe."""
