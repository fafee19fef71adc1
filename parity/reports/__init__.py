"""What a check found, as a record, a table, a page."""
