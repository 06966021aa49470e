"""Training: self-supervised pretraining, linear probes on frozen features, and fine-tuning."""
