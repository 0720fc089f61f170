"""The numbers that an ONNX file can be in, and what can run it. Imports nothing, so that a goal can name them without
loading ONNX."""

FP32, FP16, BF16, INT8 = PRECISIONS = ("fp32", "fp16", "bf16", "int8")
ONNX_RUNTIME, OPENVINO = RUNTIMES = ("onnxruntime", "openvino")
