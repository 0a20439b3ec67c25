"""Shared building blocks: durable files, JSON lines, HTTP, process pools."""
