"""What TensorBoard shows of a study."""
