"""What the product is called and which release it is."""

NAME = "fourfold"
VERSION = "0.1.0"
# Extensions of the Open Inference Protocol v2 that every server here speaks.
EXTENSIONS = ("binary_tensor_data", "model_repository", "statistics")
