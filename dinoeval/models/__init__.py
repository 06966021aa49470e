"""The network, the table of released weights, and the way from a file on disk to a frozen Backbone."""
