"""Reads pictures as 28x28 images and predicts their classes with the models of a run."""
