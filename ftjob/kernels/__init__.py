"""Fast paths for one kind of device each, beside what they must equal in plain PyTorch."""
