"""From lowered IR to bytecode."""

from .vmcodegen import generate, signature_of

__all__ = ["generate", "signature_of"]
