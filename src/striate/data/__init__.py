"""Samples, formats, preprocessing, augmentation, loaders."""
