"""Builds with the compiler's sanitizers, and what is run under them."""
