"""Optional rewriting of drafts by a language model."""
