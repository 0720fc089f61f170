"""ONNX files, the runtimes that run them, and their numeric precision.

Imports models, graph, images and support.
"""
