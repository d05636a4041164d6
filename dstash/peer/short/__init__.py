"""Answers to requests for one key in few steps; what is not plain goes to the dispatch."""
