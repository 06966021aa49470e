"""Training of linear classifiers on frozen features."""
