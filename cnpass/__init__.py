"""Compiler passes that keep ONNX models accurate on analog in-memory-computing chips."""
