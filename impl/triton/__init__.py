"""Triton kernels. On a machine without a GPU they run in Triton's interpreter: set TRITON_INTERPRET=1 first."""
