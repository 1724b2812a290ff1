# Sourced by the other scripts: makes .venv with what they need, once, and puts it first on PATH.
#
#   . scripts/_env.sh; need engine dev
#
# Everything is pinned in constraints.txt.  The environment is made anew when that file, pyproject.toml, the place of the
# checkout or the Python version changes.  The native kernels are built again when their sources change (while you work on
# them, scripts/build-kernels is faster).  PYTHON names the interpreter to use, HEADRACE_VENV another place for it.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${HEADRACE_VENV:-$root/.venv}

say() { printf '%s\n' "$*" >&2; }

# new_enough INTERPRETER: it exists and is Python 3.11 or newer
new_enough() { command -v "$1" >/dev/null && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    candidate=${PYTHON:-python3}
    say "headrace needs Python 3.11 or newer; set PYTHON to one" \
        "($candidate is $(command -v "$candidate" >/dev/null && "$candidate" --version 2>&1 || echo not there))"
    exit 3
}

need() {
    local extras python base stamp sources
    extras=$(IFS=,; echo "$*")
    python=$(find_python) || exit 3
    base=$( (cat "$root/pyproject.toml" "$root/constraints.txt"; "$python" -c 'import sys; print(sys.version, sys.base_prefix)'; echo "$root") |
        sha256sum | cut -d' ' -f1)
    # Another base means other pins or another Python: what is there cannot be trusted, a half-made one neither.
    if [ "$(cat "$venv/headrace-base" 2>/dev/null)" != "$base" ]; then
        if [ -e "$venv" ] && ! [ -e "$venv/pyvenv.cfg" ]; then
            say "$venv is there and is no virtual environment; remove it, or name another place with HEADRACE_VENV"
            exit 3
        fi
        if ! "$python" -m venv --clear "$venv"; then
            say "could not make a virtual environment with $python (on Debian and Ubuntu: apt install python3-venv)"
            exit 3
        fi
    fi
    stamp="$venv/headrace-$extras"
    sources=$(cat "$root"/headrace/engine/kernels/CMakeLists.txt "$root"/headrace/engine/kernels/cpp/* "$root"/headrace/lab/sim/_fast.cpp | sha256sum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$sources" ]; then
        say "installing headrace[$extras] into ${venv#"$root"/} (the first time takes a few minutes) ..."
        if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$root/constraints.txt" \
            --editable "$root[$extras]" 2> >(grep -v '^WARNING: Location' >&2); then
            say "installation failed; the lines above say why (is a package index reachable?)"
            exit 3
        fi
        echo "$base" >"$venv/headrace-base"
        echo "$sources" >"$stamp"
    fi
    export PATH="$venv/bin:$PATH" VIRTUAL_ENV=$venv PYTHONNOUSERSITE=1
}
