"""A run for others: on the hub with a card, or as ONNX."""
