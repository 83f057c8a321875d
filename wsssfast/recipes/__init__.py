"""Option files of published and recommended settings."""
