"""Calls on registers, for both clients: conditional changes, locks, semaphores, rate limits."""
