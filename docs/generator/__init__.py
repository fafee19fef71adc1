"""Makes the generated parts of the site: tables of results, a page for each trap, and Markdown copies of the pages."""
