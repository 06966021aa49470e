"""Networks: architectures, released weights, checkpoint files, and the frozen Backbone made of them."""
