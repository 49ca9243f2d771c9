"""Kernels of what the facade's own arithmetic needs, and their launchers."""
