"""Traces, ahead-of-time compilation and cost models: for tests and `perf`, not imported by the rest."""
