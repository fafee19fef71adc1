"""The documentation: pages in Markdown, and `docs.generator`, which makes the rest from the code and the results."""
