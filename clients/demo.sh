#!/usr/bin/env bash
# Starts a server with the model that ships with camrt on a free loopback port, explains the sample image through the
# client, and stops the server.   demo.sh <folder of the camrt command> <folder for the overlay>
set -euo pipefail
source "$(dirname "$0")/server.sh"
start_server "$1/camrt" serve --port 0
cat "$work/server.out"
"$1/camrt" explain --sample --server "$address" --out "$2"
