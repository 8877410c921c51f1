"""A layer as a short program instead of a tree of modules: captured, compiled, compared, run without autograd."""
