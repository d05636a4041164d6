"""What tests share: waiting, ports, other processes, a real Consul."""
