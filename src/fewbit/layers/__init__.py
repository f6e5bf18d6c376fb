"""What stands in a quantized model: layers, their input stages, attention, fused blocks."""
