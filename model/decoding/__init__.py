"""Token sequences from a trained network: beam search, sampling, minimum Bayes risk decoding, attention maps."""
