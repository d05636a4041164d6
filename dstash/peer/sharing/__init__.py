"""What a peer lets other processes of its machine read from its store."""
