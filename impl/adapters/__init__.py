"""One thin file per third-party package: its kernels in our signatures.

An adapter imports its package inside its functions, so that listing what is known costs nothing; it passes on
the caller's tensors as the package's documentation says, and raises NotImplementedError where the package has
no such feature.
"""
