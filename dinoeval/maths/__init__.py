"""Pure functions: arrays in, arrays or numbers out, without paths, devices or options."""
