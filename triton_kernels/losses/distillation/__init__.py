"""Divergences of rows of student and teacher logits.

`terms` has each divergence's math, `forward` and `backward` have the kernels and their launchers.
"""
