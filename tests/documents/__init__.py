"""Every document, held to what it says: its code blocks run, and its reference pages are made."""
