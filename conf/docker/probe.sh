#!/bin/bash
# Asks the peer in this container for a page of its health; the exit status is 0 if the answer is 200.
#
#   probe.sh healthz    all threads of the peer run
#   probe.sh readyz     it is ready: it serves all kinds of requests
#
# A probe runs every few seconds, so it starts no Python, and takes no proxy of the environment.
case ${DSTASH_HTTP_BIND:-*} in
    "*" | 0.0.0.0 | :: | "[::]") host=127.0.0.1 ;;
    *) host=${DSTASH_HTTP_BIND#[} ;;
esac
exec 3<>"/dev/tcp/${host%]}/${DSTASH_HTTP_PORT:-8080}" || exit 1
printf 'GET /%s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$1" >&3
read -r -t 2 _ status _ <&3 && [[ $status == 200 ]]
