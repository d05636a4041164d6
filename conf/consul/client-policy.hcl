# The policy of clients that find peers through Consul (consul in client.toml): they can read the
# list of members only.
#
#   consul acl policy create -name dstash-client -rules @conf/consul/client-policy.hcl
#   consul acl token create -description 'dstash clients' -policy-name dstash-client

key_prefix "dstash/" {
  policy = "read"
}
