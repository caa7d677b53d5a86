"""Reference networks in torch, their export to ONNX (`python -m models.export --list`), and small trained models."""
