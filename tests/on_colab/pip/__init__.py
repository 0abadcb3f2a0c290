"""Stands in Colab's pip's place: see __main__.py."""
