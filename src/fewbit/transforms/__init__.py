"""Exact rewrites: `input(x) @ weight(W).T == x @ W.T`."""
