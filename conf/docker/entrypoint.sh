#!/bin/sh
# Starts a peer in a container. Every setting is a DSTASH_* variable (see conf/peer.toml); those
# that a container always needs get their values here, unless they are set.
#
#   entrypoint.sh [OPTION...]       a peer, with options of dstash-peer
#   entrypoint.sh COMMAND [WORD...] anything else, such as: dstash status
set -eu

case "${1:-}" in
    "" | -*) ;;
    *) exec "$@" ;;
esac

# The name of a container stays when it is made again: it names the peer and its directory.
name=${DSTASH_ID:-$(uname -n)}
export DSTASH_DATA_DIR="${DSTASH_DATA_DIR:-/data/$name}"
export DSTASH_ADVERTISE="${DSTASH_ADVERTISE:-$name}"
export DSTASH_BIND="${DSTASH_BIND:-0.0.0.0}"
export DSTASH_HTTP_BIND="${DSTASH_HTTP_BIND:-0.0.0.0}"
export DSTASH_HTTP_PORT="${DSTASH_HTTP_PORT:-8080}"
export DSTASH_LOG_FORMAT="${DSTASH_LOG_FORMAT:-json}"

# exec: the peer itself gets SIGTERM, and answers what is in hand before it ends.
exec dstash-peer "$@"
