"""The neural network: backbone, cross-modal memory, transformer, dual encoder."""
