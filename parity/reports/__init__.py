"""The result of a check, as a record, a table and a page."""
