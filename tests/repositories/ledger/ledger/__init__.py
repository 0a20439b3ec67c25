"""Accounts, transfers and statements."""
