"""Reading and writing quantized models: header, tensors, manifest, blueprint, folder."""
