# The policy of peers (consul_token_file in peer.toml), if Consul has ACLs:
#
#   consul acl policy create -name dstash-peer -rules @conf/consul/peer-policy.hcl
#   consul acl token create -description 'dstash peers' -policy-name dstash-peer
#
# A holder of this token can stop the cluster, but not read or write its data. Keep it secret.

# The topology, and a lock for each peer.
key_prefix "dstash/" {
  policy = "write"
}

# The session that holds the lock, on any node.
session_prefix "" {
  policy = "write"
}

# The service with its check: dstash.service.consul resolves to the healthy peers.
service "dstash" {
  policy = "write"
}

node_prefix "" {
  policy = "read"
}
