"""The database: tables, guarded writes under a lease, and reads."""
