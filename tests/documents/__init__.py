"""Tests of the documents: code blocks run, and reference pages are generated."""
