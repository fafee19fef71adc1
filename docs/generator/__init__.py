"""Makes what the pages of the site do not say themselves: tables of results, a page a trap, twins in Markdown."""
