"""Host side of the kernels: backend, launches, tile sizes, strides, replay, device errors."""
