#!/bin/sh
# All that this project measures on a GPU, in ten minutes, as one JSON file (see gpu.py):
#   benchmarks/gpu.sh [--out gpu.json] [--device cuda] [--minutes 10]
# Without a GPU, --device cpu --quick runs the same parts with tiny networks.
exec "${PYTHON:-python}" "$(dirname "$0")/gpu.py" "$@"
