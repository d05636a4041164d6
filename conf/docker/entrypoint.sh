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

# A store keeps the id of its peer. Without --hostname, each container has another name: then the
# store in the volume is used, if there is one. Otherwise the name becomes the id of a new peer.
name=${DSTASH_ID:-$(uname -n)}
if [ -z "${DSTASH_DATA_DIR:-}" ]; then
    DSTASH_DATA_DIR=/data/$name
    if [ -z "${DSTASH_ID:-}" ] && [ ! -e "$DSTASH_DATA_DIR" ]; then
        stores=
        for file in /data/data.mdb /data/*/data.mdb; do
            [ ! -e "$file" ] || stores="$stores ${file%/data.mdb}"
        done
        case $stores in
            "") ;;
            " "*" "*)
                echo "entrypoint.sh: several stores:$stores; choose one by DSTASH_DATA_DIR" >&2
                exit 2
                ;;
            *) DSTASH_DATA_DIR=${stores# } ;;
        esac
    fi
fi
export DSTASH_DATA_DIR
export DSTASH_ADVERTISE="${DSTASH_ADVERTISE:-$name}"
# All addresses, of IPv4 and IPv6: the network of a container may have either.
export DSTASH_BIND="${DSTASH_BIND:-*}"
export DSTASH_HTTP_BIND="${DSTASH_HTTP_BIND:-*}"
export DSTASH_HTTP_PORT="${DSTASH_HTTP_PORT:-8080}"
export DSTASH_LOG_FORMAT="${DSTASH_LOG_FORMAT:-json}"

# exec: the peer itself receives SIGTERM, and answers the requests in progress before it exits.
exec dstash-peer "$@"
