"""What was measured, and what measures it. Runs from a checkout."""
