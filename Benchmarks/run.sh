#!/usr/bin/env bash
# `make bench`: the whole node, from outside. Usage: Benchmarks/run.sh BIN_DIRECTORY
exec python3 "$(dirname "$0")/node_bench.py" "$@"
