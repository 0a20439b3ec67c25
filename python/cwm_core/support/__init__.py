"""Shared building blocks: files that appear whole, JSON lines, HTTP, process pools, Ray."""
