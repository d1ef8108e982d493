"""What is fast: torch and Triton implementations, and adapters for the kernels of other packages.

Nothing here imports another room. Importing this package imports no torch.
"""
