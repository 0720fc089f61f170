"""The numbers that an ONNX file can be in. Imports nothing, so that a goal can name them without loading ONNX."""

FP32, FP16, INT8 = PRECISIONS = ("fp32", "fp16", "int8")
