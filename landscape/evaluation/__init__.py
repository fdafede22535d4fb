"""Fill a surface store."""
