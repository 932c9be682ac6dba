"""Backends that come with an extra of their own."""
