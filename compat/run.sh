#!/usr/bin/env bash
# The base install, without extras, on the newest and the lowest versions that are allowed: compat/run.sh PLACE
# PLACE is a folder for the virtual environments, 1 GB each. PY312 and PY313 name the Pythons.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
place=$(mkdir -p "${1:?name a folder}" && cd "$1" && pwd)
tests=(test_recipe test_suite test_files test_netcdf test_cells test_measurements test_laws test_project test_tokens
       test_import_table test_laplace test_cli test_compat)
"${PY312:-python3.12}" "$root/compat/lowest.py" > "$place/lowest.txt"
: > "$place/none.txt"

check() { # name, python, constraints, options of pytest
  "$2" -m venv "$place/$1"
  "$place/$1/bin/python" -m pip install -q -c "$3" -e "$root" pytest pytest-timeout hypothesis
  if "$place/$1/bin/python" -c 'import torch' 2> /dev/null; then echo "$1: the base install brought torch" >&2; exit 1; fi
  (cd "$root" && OMP_NUM_THREADS=1 "$place/$1/bin/python" -m pytest -q -p no:cacheprovider -m 'not soak and not browser' \
    "${@:4}" $(printf "tests/%s.py " "${tests[@]}")) || { echo "$1: failed" >&2; exit 1; }
  echo "$1: passed on $("$place/$1/bin/python" --version), $("$place/$1/bin/python" -m pip list --format=freeze | grep -Ec =) packages"
}

# what old packages say of newer ones that they need is not ours to mend
check lowest-312 "${PY312:-python3.12}" "$place/lowest.txt" -W ignore::DeprecationWarning
check newest-312 "${PY312:-python3.12}" "$place/none.txt"
check newest-313 "${PY313:-python3.13}" "$place/none.txt"
