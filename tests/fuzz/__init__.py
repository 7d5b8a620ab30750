"""Mutated executables, loaded and run: only typed errors may come out."""
