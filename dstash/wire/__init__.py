"""What travels: message kinds, their encoding, keys and values as bytes, sockets."""
