"""Datasets: reading images, masks and labels, and turning images into network inputs."""
