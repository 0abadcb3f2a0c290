"""Helpers of the book."""
