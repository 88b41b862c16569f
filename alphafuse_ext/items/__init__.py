"""The item table: decomposition of language embeddings, coordinates, and what holds the rows."""
