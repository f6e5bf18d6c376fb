"""One file per published method, found by listing this folder; `contract` says what a file holds."""
