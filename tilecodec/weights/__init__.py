"""The models that ship with the package, one folder each: the model file and its card."""
