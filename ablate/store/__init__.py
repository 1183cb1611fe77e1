"""Keep: facts in SQL that a person can read. SQLite by default, PostgreSQL by URL."""
