"""The native CPU kernels: the backend, its operators, the library that holds them."""
