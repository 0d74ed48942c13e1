"""Finding the first bad one of many kernels, also when the fault shows only now and then."""
