#!/bin/sh
# Starts a peer in a container. Every setting is a DSTASH_* variable (see conf/peer.toml). This script
# sets those that every container needs, unless they are set already.
#
#   entrypoint.sh [OPTION...]       a peer, with options of dstash-peer
#   entrypoint.sh COMMAND [WORD...] any other command, such as: dstash status
set -eu

case "${1:-}" in
    "" | -*) ;;
    *) exec "$@" ;;
esac

# The name of a container is kept when it is recreated, so it serves as the peer's id and directory.
name=${DSTASH_ID:-$(uname -n)}
export DSTASH_DATA_DIR="${DSTASH_DATA_DIR:-/data/$name}"
export DSTASH_ADVERTISE="${DSTASH_ADVERTISE:-$name}"
export DSTASH_BIND="${DSTASH_BIND:-0.0.0.0}"
export DSTASH_HTTP_BIND="${DSTASH_HTTP_BIND:-0.0.0.0}"
export DSTASH_HTTP_PORT="${DSTASH_HTTP_PORT:-8080}"
export DSTASH_LOG_FORMAT="${DSTASH_LOG_FORMAT:-json}"

# exec: the peer itself receives SIGTERM, and answers the requests in progress before it exits.
exec dstash-peer "$@"
