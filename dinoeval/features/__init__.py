"""From tokens to feature vectors, and the cache that stores them."""
