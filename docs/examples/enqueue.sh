#!/bin/sh
# One event into the stream that a worker reads:
#
#   ./enqueue.sh '{"id":"1","forum":"cnn","thread":"9","message":"hi"}'
#
# REDIS is redis://host:port/database; the stream is trimmed to an hour, by its own clock.
set -eu
keep_from=$((($(date +%s) - 3600) * 1000))
exec redis-cli -u "${REDIS:-redis://127.0.0.1:6379/0}" XADD "${STREAM:-posts}" MINID '~' "$keep_from" '*' body "$1"
