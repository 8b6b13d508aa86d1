"""Training stages: pretrain, retriever, index, cross-entropy, SCST, MBR table."""
