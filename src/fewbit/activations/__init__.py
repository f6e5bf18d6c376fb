"""How an input is quantized at run time. Each file is one kind, found by listing this folder."""
