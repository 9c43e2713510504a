"""Scripted experts that make demonstrations."""
