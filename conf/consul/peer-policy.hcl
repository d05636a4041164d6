# What the token of the peers may do (consul_token_file in peer.toml), when Consul has ACLs:
#
#   consul acl policy create -name dstash-peer -rules @conf/consul/peer-policy.hcl
#   consul acl token create -description 'dstash peers' -policy-name dstash-peer
#
# Who has it can stop the cluster, but not read or write its data: keep it from everybody else.

# The topology, and a lock for each peer.
key_prefix "dstash/" {
  policy = "write"
}

# The session that holds the lock, on whatever node the peer's agent is.
session_prefix "" {
  policy = "write"
}

# The service with its check: dstash.service.consul resolves to the peers that are well.
service "dstash" {
  policy = "write"
}

node_prefix "" {
  policy = "read"
}
