"""Bytes, launches, allocations, syncs and memory, counted or estimated without a GPU."""
