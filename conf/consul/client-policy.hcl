# What the token of a client may do that finds peers through Consul (consul in client.toml): read
# the list of members, and nothing else.
#
#   consul acl policy create -name dstash-client -rules @conf/consul/client-policy.hcl
#   consul acl token create -description 'dstash clients' -policy-name dstash-client

key_prefix "dstash/" {
  policy = "read"
}
