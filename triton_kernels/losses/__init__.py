"""Kernels of losses, and their launchers."""
