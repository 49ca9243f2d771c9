"""Machine code of compiled kernels, read without a GPU."""
