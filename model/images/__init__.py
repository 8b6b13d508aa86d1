"""Image bytes to grey pixels: the only decoder and preprocessor."""
