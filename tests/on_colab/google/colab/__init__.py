"""Colab, as far as the setup cell asks for it."""
