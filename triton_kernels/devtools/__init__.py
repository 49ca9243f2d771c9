"""Launch traces, checks of accesses, ahead-of-time compilation and roofline costs, for tests and `perf` only."""
