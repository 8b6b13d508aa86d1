"""Tokenizer and finding labeler."""
