"""Training of ONNX models in PyTorch: the lift, injected variation, the Lipschitz penalty, retraining."""
