"""A quantized model as a graph of another runtime: ONNX and OpenVINO."""
