"""One file per published method, found by listing this folder; `contract` is what it holds."""
