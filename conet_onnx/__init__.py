"""conet-onnx."""
