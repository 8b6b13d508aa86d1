"""Reference cases: the FAISS index of training-report embeddings, its case store and the Open-i archive."""
