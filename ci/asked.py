"""Stands for the kernels that `pytest --assay` names; the plugin fills it."""
