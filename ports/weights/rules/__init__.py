"""Rules for anybody's own network: a TOML file, its patterns, and a first draft of it."""
