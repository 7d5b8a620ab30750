"""Frontends: what reads a model of another framework into an `IRModule`. One package per framework."""
