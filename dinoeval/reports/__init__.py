"""Reports of Results for people."""
