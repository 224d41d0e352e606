"""Training of lanes: the epochs, evaluation, CUDA graphs, and the choice of an implementation."""
