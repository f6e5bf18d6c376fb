"""What quantization cost, measured on things that calibration never saw."""
