"""The subjects that are timed: settings, the rows of the roster, how each is built, and what a step of it needs."""
