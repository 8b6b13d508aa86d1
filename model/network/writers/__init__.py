"""The writers: each turns the sequence of patch tokens and cases into words; one published system a file."""
