"""Time on a device, and the cases that are timed."""
