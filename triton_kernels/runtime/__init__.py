"""Where and how kernels run: the backend, launches, tile sizes, strides, errors of the device."""
