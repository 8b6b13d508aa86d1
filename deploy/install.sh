#!/bin/sh
# Install packages, with the chosen PyTorch, into the environment of $PYTHON.
#
#   PYTHON=.venv/bin/python sh deploy/install.sh TORCH [arguments of pip install]
#
#   TORCH                 version   from
#   default               newest    the default index of pip (CUDA 13)
#   oldest                oldest    the default index of pip (CUDA 12.8)
#   cpu                   newest    PyTorch's index, without CUDA
#   cu126, cu128, cu130   oldest    PyTorch's index, with this CUDA
#
# Where PyTorch's index cannot be reached, the same version comes from the default index, after a note.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python} torch=$1
shift

constraints=constraints.txt
case $torch in
  default | cpu) ;;
  oldest | cu126 | cu128 | cu130)
    constraints=$(mktemp)
    trap 'rm -f "$constraints"' EXIT
    { grep -vE '^torch(vision)?==' constraints.txt; cat constraints-oldest.txt; } > "$constraints" ;;
  *) echo "TORCH=$torch: unknown; use default, oldest, cpu, cu126, cu128 or cu130" >&2; exit 2 ;;
esac
if [ -n "${RECORD:-}" ]; then  # a file that keeps TORCH, for make
  mkdir -p "$(dirname "$RECORD")"
  echo "$torch" > "$RECORD"
fi

# One request in at most 10 s; pip alone would retry for minutes.
reachable() {
  "$python" -c 'import signal, sys, urllib.request as u; signal.alarm(10); u.urlopen(sys.argv[1])' "$1" 2> /dev/null
}

case $torch in cpu | cu*)
  index=https://download.pytorch.org/whl/$torch
  { reachable "$index/torch/" &&
    "$python" -m pip install -c "$constraints" --no-deps --index-url "$index" torch torchvision; } ||
    echo "note: $index cannot be used; PyTorch comes from the default index, on Linux with CUDA (5 GB)" ;;
esac
"$python" -m pip install -c "$constraints" "$@"
