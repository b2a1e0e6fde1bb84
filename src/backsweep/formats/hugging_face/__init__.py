"""What the files beside the weights of a Hugging Face model say, and getting them from the hub."""
