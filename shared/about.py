"""Which release this is, and how its servers introduce themselves."""

VERSION = "0.1.0"
# The answer of the Open Inference Protocol v2 to "which server is this".
V2_SERVER = {
    "name": "fourfold",
    "version": VERSION,
    "extensions": ["binary_tensor_data", "model_repository", "statistics"],
}
PRINCIPAL_HEADER = "Fourfold-Principal"  # who asks, told to the services by the gateway, which drops a client's own
